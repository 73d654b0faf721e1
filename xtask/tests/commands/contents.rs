//! What kiln.toml's `[image.NAME]` puts into an image, by the shipped command: what is wrong with it is shown before anything
//! is asked of AWS, a failing step is named and leaves no image, and a change of any part is one new image.

use kiln_e2e::story::{FLEETS, VERSIONS};

use crate::support::{World, quiet, refused, world};

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nAA==\n-----END CERTIFICATE-----\n";

const DOCUMENT: &str = "name: mine\ndescription: Mine.\nschemaVersion: 1.0\nphases:\n  - name: build\n    steps:\n      \
    - name: Do\n        action: ExecuteBash\n        inputs:\n          commands:\n            - 'true'\n";

const TABLE: &str = "base = \"debian-12\"\ntoolset = \"standard\"\npackages = [\"postgresql-client\"]\n\
    scripts = [\"image/one.sh\", \"image/two.sh\"]\ntests = [\"image/test.sh\"]\n\
    files = [{ source = \"image/app.conf\", destination = \"/etc/app.conf\" }]\n\
    ca_certificates = [\"image/ca.pem\"]\ncomponents = [\"image/own.yml\"]\n";

/// An AMI for x86_64 under an image for the other architecture.
const ARM: &str =
    "base = \"/aws/service/debian/release/12/latest/amd64\"\nfamily = \"debian-12\"\narchitecture = \"aarch64\"";

async fn with_files() -> World {
    let world = world().await;
    let folder = world.config().parent().unwrap().join("image");
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in [
        ("one.sh", "echo one\n"),
        ("two.sh", "echo two\n"),
        ("test.sh", "true\n"),
        ("app.conf", "x = 1\n"),
        ("ca.pem", CERTIFICATE),
        ("own.yml", DOCUMENT),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    world
}

/// All fleets run this image.
fn configure(world: &World, lines: &str) {
    let named = FLEETS.replace("registration =", "image = \"tools\"\nregistration =");
    world.write_config(VERSIONS[0], &format!("[image.tools]\n{lines}\n{named}")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_file_is_shown_in_kiln_toml_before_anything_is_asked_of_aws() {
    let world = with_files().await;
    let folder = world.config().parent().unwrap().to_owned();
    std::fs::write(folder.join("image/empty.sh"), " \n").unwrap();
    std::fs::write(folder.join("image/windows.sh"), "true\r\n").unwrap();
    std::fs::write(folder.join("image/large.sh"), vec![b'#'; (1 << 20) + 1]).unwrap();
    std::fs::write(folder.join("image/key.pem"), "-----BEGIN RSA PRIVATE KEY-----\n").unwrap();
    std::fs::write(folder.join("image/bad.yml"), DOCUMENT.replace("ExecuteBash", "ExecuteBass")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", folder.join("image/elsewhere.sh")).unwrap();
    for (lines, said) in [
        ("scripts = [\"image/absent.sh\"]", "can't read `image/absent.sh`: No such file"),
        ("scripts = [\"image\"]", "`image` is no regular file"),
        ("scripts = [\"image/empty.sh\"]", "`image/empty.sh` is empty"),
        ("tests = [\"image/windows.sh\"]", "has Windows line ends"),
        ("tests = [\"image/large.sh\"]", "has 1048577 bytes"),
        ("scripts = [\"image/elsewhere.sh\"]", "leads to /etc/hostname, which is elsewhere"),
        ("files = [{ source = \"image/absent\", destination = \"/etc/a\" }]", "can't read `image/absent`"),
        ("ca_certificates = [\"image/key.pem\"]", "holds a private key"),
        ("ca_certificates = [\"image/one.sh\"]", "holds no certificate in PEM"),
        ("components = [\"image/bad.yml\"]", "unknown variant `ExecuteBass`"),
    ] {
        configure(&world, lines);
        let text = std::fs::read_to_string(world.config()).unwrap();
        let line = text.lines().position(|line| line == lines).unwrap() + 1;
        let outcome = world.run(&["ami"], quiet).await.unwrap();
        assert_eq!(outcome.code, Some(3), "{lines}: {}", outcome.stderr);
        let told = outcome.stderr;
        assert!(told.contains("= help: "), "{lines}: {told}");
        assert!(told.contains(said), "{lines}: no `{said}` in {told}");
        assert!(told.contains(&format!("kiln.toml:{line}:")), "{lines}: not at line {line}: {told}");
    }
    assert_eq!(world.aws.mutations(), 0);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_does_not_fit_is_refused_before_anything_is_made() {
    let world = with_files().await;
    for (lines, said) in [
        // The emulator says of every AMI that it is for x86_64.
        (ARM, "that is for x86_64, and `architecture` is aarch64"),
        ("base = \"/golden/ami\"\nfamily = \"debian-12\"", "parameter /golden/ami names, which does not exist"),
        ("base = \"ami-0dead000000000000\"\nfamily = \"debian-12\"", "ami-0dead000000000000: it is not available here"),
    ] {
        configure(&world, lines);
        if lines == ARM {
            let text = std::fs::read_to_string(world.config()).unwrap();
            let pinned = text.replace("x86_64 = ", &format!("aarch64 = \"{}\"\nx86_64 = ", "0".repeat(64)));
            std::fs::write(world.config(), pinned.replace("m6i.", "m6g.").replace("m5.", "m7g.")).unwrap();
        }
        let told = refused(&world, &["ami"], 5).await;
        assert!(told.contains(said) && told.contains("[base-unfit]"), "{lines}: {told}");
    }
    assert_eq!(world.aws.mutations(), 0);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_package_script_or_test_is_named_and_a_change_is_one_new_image() {
    let world = with_files().await;
    configure(&world, TABLE);
    // These steps need a machine, which the stand-in has not: it is told which one fails. The boot rehearsal runs them.
    for step in [
        "build/kiln-contents/InstallPackages",
        "build/kiln-contents/Script02-image-two-sh",
        "test/kiln-contents/Test01-image-test-sh",
    ] {
        world.aws.fail_build_step(step);
        let told = refused(&world, &["ami"], 6).await;
        let [phase, _, name] = step.split('/').collect::<Vec<_>>()[..] else { panic!("{step}") };
        assert!(told.contains(&format!("phase {phase}, step {name}: told to fail")), "{step}: {told}");
        assert!(world.aws.images().is_empty(), "{step}: an image was recorded");
    }
    let baked = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    let steps = world.aws.images()[0].skipped.clone();
    let place =
        |step: &str| steps.iter().position(|known| known == step).unwrap_or_else(|| panic!("{step}: {steps:?}"));
    let order = [
        "build/kiln-certificates/InstallCertificates",
        "build/kiln-os/InstallPackages",
        "build/kiln-contents/InstallPackages",
        "build/kiln-contents/Script01-image-one-sh",
        "build/kiln-contents/Script02-image-two-sh",
        "build/mine/Do",
        "build/kiln-cleanup/RemoveCaches",
        "test/kiln-contents/Test01-image-test-sh",
    ];
    assert!(order.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{steps:?}");

    // Nothing changed: nothing is done. One byte of a script: one new image.
    let before = world.aws.mutations();
    let again = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    assert_eq!((again.stdout, world.aws.mutations()), (baked.stdout.clone(), before));
    std::fs::write(world.config().parent().unwrap().join("image/two.sh"), "echo three\n").unwrap();
    let changed = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    assert!(
        changed.stdout != baked.stdout && changed.stderr.contains("upload what kiln.toml adds"),
        "{}",
        changed.stderr
    );
    assert_eq!(world.aws.images().len(), 2);
    world.shutdown().await.unwrap();
}
