//! Building the bootstrap binary: static, for musl, the same bytes from any directory.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_config::model::Architecture;
use kiln_image::payload;
use kiln_operations::{Code, Error};
use xshell::{Cmd, Shell, cmd};

use crate::tools;
use crate::ui::note;

/// How it is built: a part of what the binary is made from.
pub const RECIPE: &str = include_str!("musl.rs");

/// The compiler by which a target's binary is built, in its own words.
///
/// # Errors
/// There is none.
pub fn compiler(shell: &Shell, architecture: Architecture) -> anyhow::Result<String> {
    let rustc = match installed(shell, architecture.musl_target()) {
        Some(_) => Path::new("rustc"),
        None => Path::new("/usr/bin/rustc"),
    };
    cmd!(shell, "{rustc} --version --verbose").quiet().ignore_stderr().read().context("ask rustc for its version")
}

/// May a build for the machine at hand stand in where no musl build is possible?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// No: what goes into an image is built for musl.
    Refuse,
    /// Yes, statically linked with glibc, and said so: a rehearsal's instances run on this very machine.
    StaticGlibc,
}

/// A binary, proved to be static.
#[derive(Debug)]
pub struct Built {
    /// Where it is.
    pub path: PathBuf,
}

/// A way to the standard library of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StdSource {
    /// The toolchain has it.
    Installed,
    /// It is built from source by this cargo, with the rustc beside it, which has the source to match.
    FromSource {
        /// The cargo.
        cargo: PathBuf,
    },
}

/// What is built for musl.
#[derive(Debug, Clone, Copy)]
struct Package<'a> {
    name: &'a str,
    binary: &'a str,
    profile: &'a str,
    /// Turns on `bundled`, with what is in this folder.
    bundle: Option<&'a Path>,
}

const BOOTSTRAP: Package<'_> =
    Package { name: "kiln-bootstrap", binary: "kiln-bootstrap", profile: "instance", bundle: None };

/// Builds the operator's `kiln` from the workspace in the shell's current directory, with the instance's binaries of a folder
/// built in.
///
/// # Errors
/// The target's standard library can be had in no way; the build fails; the result is not static.
pub fn build_kiln(shell: &Shell, architecture: Architecture, bundle: &Path) -> anyhow::Result<Built> {
    let target = architecture.musl_target();
    let way = way(shell, target).ok_or_else(|| no_standard_library(target))?;
    let package = Package { name: "kiln-cli", binary: "kiln", profile: "tool", bundle: Some(bundle) };
    let path = build_musl(shell, &shell.current_dir(), package, target, &way)?;
    let binary = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    payload::prove_static(&binary, architecture).with_context(|| format!("{} is not fit", path.display()))?;
    Ok(Built { path })
}

/// Builds the binary from the workspace in the shell's current directory.
///
/// # Errors
/// The target's standard library can be had in no way; the build fails; the result is not static.
pub fn build_bootstrap(shell: &Shell, architecture: Architecture, fallback: Fallback) -> anyhow::Result<Built> {
    let root = shell.current_dir();
    let target = architecture.musl_target();
    let path = match way(shell, target) {
        Some(way) => build_musl(shell, &root, BOOTSTRAP, target, &way)?,
        None if fallback == Fallback::StaticGlibc => {
            note(&format!(
                "no standard library for {target}: this rehearsal's binary is linked statically with glibc instead"
            ));
            build_glibc(shell, &root)?
        }
        None => return Err(no_standard_library(target).into()),
    };
    let binary = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    payload::prove_static(&binary, architecture).with_context(|| format!("{} is not fit", path.display()))?;
    Ok(Built { path })
}

/// Can it be built for this target?
pub fn is_possible(shell: &Shell, target: &str) -> bool {
    way(shell, target).is_some()
}

/// The toolchain has the target's standard library.
fn installed(shell: &Shell, target: &str) -> Option<StdSource> {
    let sysroot = cmd!(shell, "rustc --print sysroot").quiet().ignore_stderr().read().ok()?;
    Path::new(&sysroot).join("lib/rustlib").join(target).join("lib").is_dir().then_some(StdSource::Installed)
}

fn no_standard_library(target: &str) -> Error {
    let message = format!("no standard library for {target}, and rustup could not add it");
    Error::new(Code::ToolchainMissing, message).hint(format!(
        "`rustup target add {target}`; where rustup can't, install a rustc with its source (Debian: apt install \
         rustc-web cargo-web rust-web-src), from which it is built"
    ))
}

fn way(shell: &Shell, target: &str) -> Option<StdSource> {
    installed(shell, target)
        .or_else(|| {
            cmd!(shell, "rustup target add {target}").quiet().ignore_stdout().ignore_stderr().run().ok()?;
            installed(shell, target)
        })
        .or_else(|| from_source(shell))
}

/// A distribution's own toolchain whose package of the source goes with its compiler.
fn from_source(shell: &Shell) -> Option<StdSource> {
    let (rustc, cargo) = (Path::new("/usr/bin/rustc"), Path::new("/usr/bin/cargo"));
    if !rustc.exists() || !cargo.exists() {
        return None;
    }
    let sysroot = cmd!(shell, "{rustc} --print sysroot").quiet().ignore_stderr().read().ok()?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/std/Cargo.toml");
    source.exists().then(|| StdSource::FromSource { cargo: cargo.to_owned() })
}

fn build_musl(
    shell: &Shell,
    root: &Path,
    package: Package<'_>,
    target: &str,
    way: &StdSource,
) -> anyhow::Result<PathBuf> {
    let Package { name, binary, profile, bundle } = package;
    // zig is the C compiler for musl, on every machine the same one: aws-lc compiles C.
    let tools = tools::tools()?;
    // It leaves the list of crates in the binary, from which the image's SBOM is made.
    let auditable = tools.cargo_auditable()?;
    let tools = tools.build_bin()?;
    // Of its own, since another toolchain's artifacts in the common one would have both rebuilt in turns.
    let target_dir = root.join("target/instance");
    let mut build = cmd!(shell, "{auditable} auditable zigbuild --locked --profile {profile} --package {name}")
        .args(["--bin", binary, "--target", target])
        .arg("--target-dir")
        .arg(&target_dir);
    if let Some(bundle) = bundle {
        build = build.args(["--features", "bundled"]).env("KILN_BUNDLE", bundle);
    }
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    let mut path = std::env::var("PATH").unwrap_or_default();
    if let StdSource::FromSource { cargo } = way {
        // zig brings musl's own start files, so that rustc's are not looked for.
        flags.push("-Clink-self-contained=no".to_owned());
        path = format!("/usr/bin:{path}");
        build = build.arg("-Zbuild-std=std,panic_abort").env("RUSTC_BOOTSTRAP", "1").env("CARGO", cargo);
    }
    // First, since cargo-zigbuild asks the first Python it finds for zig.
    let path = format!("{}:{path}", tools.display());
    run_reproducibly(build.env("PATH", path), root, flags)?;
    Ok(target_dir.join(target).join(profile).join(binary))
}

fn build_glibc(shell: &Shell, root: &Path) -> anyhow::Result<PathBuf> {
    let target_dir = root.join("target/instance-glibc");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // With --target, so that the flags don't reach build scripts, which load dynamic libraries.
    let auditable = tools::tools()?.cargo_auditable()?;
    let build = cmd!(shell, "{auditable} auditable build --locked --profile instance --package kiln-bootstrap")
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(&target_dir);
    run_reproducibly(build, root, vec!["-Ctarget-feature=+crt-static".to_owned()])?;
    Ok(target_dir.join(host).join("instance/kiln-bootstrap"))
}

/// Directories of this machine are taken out of what the compilers write down.
fn run_reproducibly(build: Cmd<'_>, root: &Path, mut flags: Vec<String>) -> anyhow::Result<()> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
    let mut c_flags = Vec::new();
    let places = [(Some(root.to_owned()), "/kiln"), (cargo_home, "/cargo")];
    for (place, name) in places {
        let Some(place) = place else { continue };
        flags.push(format!("--remap-path-prefix={}={name}", place.display()));
        c_flags.push(format!("-ffile-prefix-map={}={name}", place.display()));
    }
    build
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CFLAGS", c_flags.join(" "))
        .env("SOURCE_DATE_EPOCH", "0")
        // AWS-LC would gather entropy from the processor's jitter beside the kernel's: two thirds of a boot's processor
        // time. The kernel's generator is what every other program on the instance trusts.
        .env("AWS_LC_SYS_NO_JITTER_ENTROPY", "1")
        // A test or an xtask that runs under cargo must not hand its own settings on.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("RUSTUP_TOOLCHAIN")
        .quiet()
        .run()
        .context("build the binary")
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}
