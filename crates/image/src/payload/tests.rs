use std::io::Read as _;
use std::path::Path;

use super::*;

fn entry(mode: u32, bytes: &[u8]) -> Entry {
    Entry { mode, bytes: bytes.to_vec() }
}

fn unpacked(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, MTIME));
        let mode = header.mode().unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (path, mode, content)
    });
    entries.collect()
}

#[test]
fn what_is_packed_is_unpacked_in_order() {
    let entries =
        BTreeMap::from([("usr/b".to_owned(), entry(0o755, b"binary")), ("etc/a".to_owned(), entry(0o644, b"text"))]);
    let expected = vec![("etc/a".to_owned(), 0o644, b"text".to_vec()), ("usr/b".to_owned(), 0o755, b"binary".to_vec())];
    assert_eq!(unpacked(&pack(&entries)), expected);
}

/// The digest is the same from another directory, at another time, with other permissions and another umask, since
/// nothing of the file system's goes in: this packs one binary read from two places.
#[test]
fn two_packings_are_equal() {
    let [here, there] = [0o755, 0o600].map(|mode| {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kiln-bootstrap");
        std::fs::write(&path, b"the binary").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Payload::of_bootstrap(&std::fs::read(path).unwrap())
    });
    assert_eq!(here, there);
    assert_ne!(here.sha256, Payload::of_bootstrap(b"another binary").sha256);
}

/// Known from outside: if an update of a library changes the bytes, every image is baked anew, which is to be noticed.
#[test]
fn the_gzip_header_names_no_file_time_or_system() {
    let bytes = pack(&BTreeMap::new());
    // Magic, deflate, no flags, no time, neither the best compression nor the fastest, unknown system.
    assert_eq!(bytes[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
}

#[test]
fn every_file_beside_the_documents_is_in_the_payload() {
    fn visit(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ami/files");
    let mut found = vec![BOOTSTRAP_PATH.to_owned(), SBOM_PATH.to_owned()];
    visit(&root, &root, &mut found);
    found.sort();
    let payload = Payload::of_bootstrap(b"the binary");
    let packed: Vec<_> = unpacked(&payload.bytes);
    assert_eq!(packed.iter().map(|(path, ..)| path.as_str()).collect::<Vec<_>>(), found);
    let executable: Vec<_> = packed.iter().filter(|(_, mode, _)| mode & 0o111 != 0).map(|(path, ..)| path).collect();
    let expected = [
        "opt/kiln/checks/runner.sh",
        "opt/kiln/hooks/job-completed.sh",
        "opt/kiln/hooks/job-started.sh",
        BOOTSTRAP_PATH,
    ];
    assert_eq!(executable, expected);
}

#[test]
fn a_binary_that_does_not_say_what_it_is_made_of_is_listed_as_unknown() {
    let payload = Payload::of_bootstrap(b"the binary");
    let sbom = unpacked(&payload.bytes).into_iter().find(|(path, ..)| path == SBOM_PATH).unwrap().2;
    let sbom: serde_json::Value = serde_json::from_slice(&sbom).unwrap();
    assert_eq!(sbom["compositions"][0]["aggregate"], "unknown");
    assert_eq!(sbom["metadata"]["component"]["hashes"][0]["content"], sha256(b"the binary").as_str());
}

/// The keys of Amazon Linux 2's systemd 219 that the units use; a newer one would be ignored there, silently.
#[test]
fn the_units_use_what_systemd_219_knows() {
    let known = [
        "After",
        "Before",
        "Delegate",
        "Description",
        "EnvironmentFile",
        "ExecStart",
        "ExecStop",
        "KillMode",
        "LimitCORE",
        "LimitNOFILE",
        "OOMScoreAdjust",
        "OnFailure",
        "RemainAfterExit",
        "Restart",
        "RestartPreventExitStatus",
        "RestartSec",
        "Slice",
        "StartLimitBurst",
        "StartLimitInterval",
        "TimeoutStartSec",
        "TimeoutStopSec",
        "Type",
        "WantedBy",
        "Wants",
        "WatchdogSec",
    ];
    // Where systemd is too old for them, the bake removes the files of the folders.
    let own =
        |path: &str| path.ends_with(".service") || path.ends_with(".slice") || path.contains("/docker.service.d/");
    let units: Vec<_> = FILES.iter().filter(|(path, _, _)| own(path)).collect();
    assert_eq!(units.len(), 7);
    for (path, _, unit) in units {
        let lines = std::str::from_utf8(unit).unwrap().lines();
        for line in lines.filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()) {
            let (key, _) = line.split_once('=').unwrap();
            assert!(known.contains(&key), "{path}: {key}");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// ELF files, made by hand: a header, the program headers, and what they point to.

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

#[derive(Clone)]
struct Elf {
    class: u8,
    data: u8,
    machine: u16,
    kind: u16,
    entry: u64,
    /// `p_type` and content of each segment.
    segments: Vec<(u32, Vec<u8>)>,
}

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

fn static_executable() -> Elf {
    Elf { class: 2, data: 1, machine: 62, kind: 2, entry: 0x40_1000, segments: vec![(1, b"code".to_vec())] }
}

impl Elf {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', self.class, self.data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.machine.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(self.entry.to_le_bytes());
        bytes.extend((HEADER as u64).to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        for half in [HEADER, PROGRAM_HEADER, self.segments.len(), 0, 0, 0] {
            bytes.extend(u16::try_from(half).unwrap().to_le_bytes());
        }
        let mut offset = (HEADER + PROGRAM_HEADER * self.segments.len()) as u64;
        for (kind, content) in &self.segments {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(4u32.to_le_bytes());
            let length = content.len() as u64;
            for word in [offset, offset, offset, length, length, 1] {
                bytes.extend(word.to_le_bytes());
            }
            offset += length;
        }
        bytes.extend(self.segments.iter().flat_map(|(_, content)| content));
        bytes
    }

    fn proved(&self) -> Result<(), NotStatic> {
        prove_static(&self.bytes(), Architecture::X86_64)
    }
}

fn dynamic(tags: &[u64]) -> (u32, Vec<u8>) {
    let entries = tags.iter().chain(&[0]).flat_map(|tag| [tag.to_le_bytes(), 1u64.to_le_bytes()]);
    (PT_DYNAMIC, entries.flatten().collect())
}

#[test]
fn static_executables_pass() {
    let executable = static_executable();
    assert_eq!(executable.proved(), Ok(()));
    // static-pie: position independent, relocated by itself.
    let mut pie = Elf { kind: 3, ..executable.clone() };
    pie.segments.push(dynamic(&[0x6fff_fffb]));
    assert_eq!(pie.proved(), Ok(()));
    let arm = Elf { machine: 183, ..executable };
    assert_eq!(prove_static(&arm.bytes(), Architecture::Aarch64), Ok(()));
}

#[test]
fn others_do_not() {
    let good = static_executable();
    let with = |segment: (u32, Vec<u8>)| {
        let mut elf = good.clone();
        elf.segments.push(segment);
        elf
    };
    let loader = with((PT_INTERP, b"/lib64/ld-linux-x86-64.so.2\0".to_vec()));
    assert_eq!(loader.proved(), Err(NotStatic::Interpreter("/lib64/ld-linux-x86-64.so.2".to_owned())));
    assert_eq!(with(dynamic(&[1, 1])).proved(), Err(NotStatic::Needed(2)));
    let wrong = NotStatic::Machine { found: 183, expected: Architecture::X86_64, wanted: 62 };
    assert_eq!(Elf { machine: 183, ..good.clone() }.proved(), Err(wrong));
    assert_eq!(Elf { kind: 1, ..good.clone() }.proved(), Err(NotStatic::Kind(1)));
    assert_eq!(Elf { kind: 3, entry: 0, ..good.clone() }.proved(), Err(NotStatic::Kind(3)));
    assert_eq!(Elf { data: 2, ..good.clone() }.proved(), Err(NotStatic::BigEndian));
    assert!(matches!(Elf { class: 1, ..good.clone() }.proved(), Err(NotStatic::Unreadable(_))));
    let truncated = &good.bytes()[..80];
    assert!(matches!(prove_static(truncated, Architecture::X86_64), Err(NotStatic::Unreadable(_))));
    assert!(matches!(prove_static(b"#!/bin/sh\n", Architecture::X86_64), Err(NotStatic::Unreadable(_))));
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static")))]
fn this_test_itself_is_dynamic() {
    let architecture = if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };
    let itself = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(matches!(prove_static(&itself, architecture), Err(NotStatic::Interpreter(_))));
}

/// A runner in a folder of its own, looked at by the script that looks at an image's.
fn check_runner(node: &[u8], listener: &str) -> (bool, String) {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, bytes: &[u8]| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    put("bin/Runner.Listener", format!("#!/bin/sh\necho {listener}\n").as_bytes());
    put("externals/node24/bin/node", node);
    // Not for this system, and none of its business.
    put("externals/node24_alpine/bin/node", b"not even a program");
    std::fs::create_dir(root.path().join("_diag")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ami/files/opt/kiln/checks/runner.sh");
    let output = std::process::Command::new("bash").arg(script).arg(root.path()).arg("2.338.0").output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

#[test]
fn a_node_that_starts_and_is_the_right_one_is_well() {
    // Its version when asked for it, and what the check's script prints otherwise.
    let node = b"#!/bin/sh\ncase $1 in --version) echo v24.19.0 ;; *) echo 'crypto and TLS work' ;; esac\n";
    let (well, said) = check_runner(node, "2.338.0");
    assert!(well && said.contains("externals/node24/bin/node is v24.19.0"), "{said}");
}

#[test]
fn a_runner_or_a_node_that_is_not_what_it_should_be_is_told() {
    for (node, listener, told) in [
        ("#!/bin/sh\necho v20.1.0\n", "2.338.0", "externals/node24/bin/node is v20.1.0"),
        ("#!/bin/sh\necho oh; exit 1\n", "2.338.0", "externals/node24/bin/node does not run: oh"),
        ("#!/bin/sh\necho v24.1.0\n", "2.337.1", "bin/Runner.Listener is 2.337.1, not 2.338.0"),
    ] {
        let (well, said) = check_runner(node.as_bytes(), listener);
        assert!(!well && said.contains(told), "{told}: {said}");
    }
}

/// A program of this machine's, made to ask for a newer glibc than there is.
#[test]
fn a_node_for_a_newer_glibc_is_told_by_the_version_it_asks_for() {
    let hash = |name: &[u8]| {
        name.iter().fold(0_u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add((*byte).into());
            let high = hash & 0xf000_0000;
            (hash ^ (high >> 24)) & !high
        })
    };
    let program = std::fs::read("/bin/true").unwrap();
    let asked = [&b"GLIBC_2.2.5\0"[..], b"GLIBC_2.17\0"];
    let old = asked.into_iter().find(|name| program.windows(name.len()).any(|window| window == *name)).unwrap();
    let mut new = old.to_vec();
    new[6] = b'9';
    let replace = |bytes: &[u8], from: &[u8], to: &[u8]| {
        let mut bytes = bytes.to_vec();
        while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
            bytes[at..at + from.len()].copy_from_slice(to);
        }
        bytes
    };
    let name = |text: &[u8]| hash(&text[..text.len() - 1]).to_le_bytes();
    let newer = replace(&replace(&program, old, &new), &name(old), &name(&new));
    let (well, said) = check_runner(&newer, "2.338.0");
    let wanted = String::from_utf8_lossy(&new[..new.len() - 1]).into_owned();
    assert!(!well && said.contains(&format!("asks for {wanted}; the image has glibc ")), "{said}");
}
