//! What kiln.toml's `[image.NAME]` puts into an image: an archive of its files, and the component documents that use it.
//!
//! The documents are generated, one step for each script and test, so that a failing one is named by Image Builder itself.
//! Both the archive and the documents are the same byte for byte for the same contents: their digests are inputs of the image.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::components::{Document, Problem};
use crate::payload::{Entry, Payload, pack, sha256};

/// The name of the document that makes authorities trusted; it runs before anything is downloaded.
pub const CERTIFICATES: &str = "certificates";

/// The name of the document with everything else.
pub const CONTENTS: &str = "contents";

/// Where the image keeps the tests.
pub const TESTS: &str = "/opt/kiln/tests";

/// Where the image keeps the authorities' certificates for Node, which has a list of its own.
pub const NODE_CERTIFICATES: &str = "/etc/kiln/ca-certificates.pem";

/// What is put into an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Packages, the toolset's first.
    pub packages: Vec<String>,
    /// Certificates, one in each text.
    pub certificates: Vec<String>,
    /// Files that are laid down.
    pub files: Vec<LaidDown>,
    /// Scripts for the machine that becomes the image.
    pub scripts: Vec<Script>,
    /// Scripts for an instance that is started from it.
    pub tests: Vec<Script>,
    /// Containers' images by digest.
    pub containers: Vec<String>,
    /// Component documents of the user's: a name made of the file's, and the text.
    pub documents: Vec<(String, String)>,
}

/// A file that is laid down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaidDown {
    /// Its absolute path in the image, of letters, digits and `._+@-/`.
    pub destination: String,
    /// Its permissions.
    pub mode: u32,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Its path as kiln.toml has it.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Contents {
    /// Has the image nothing of the user's but, perhaps, components?
    pub fn is_empty(&self) -> bool {
        let Self { packages, certificates, files, scripts, tests, containers, documents: _ } = self;
        packages.is_empty()
            && certificates.is_empty()
            && files.is_empty()
            && scripts.is_empty()
            && tests.is_empty()
            && containers.is_empty()
    }

    /// The archive with everything that is a file; nothing where there is no file.
    pub fn archive(&self) -> Option<Payload> {
        let Self { certificates, files, scripts, tests, .. } = self;
        let mut entries = BTreeMap::new();
        let mut add = |path: String, bytes: &[u8]| entries.insert(path, Entry { mode: 0o644, bytes: bytes.to_vec() });
        for (index, certificate) in certificates.iter().enumerate() {
            add(format!("certificates/kiln-{}.crt", number(index)), certificate.as_bytes());
        }
        for (folder, list) in [("scripts", scripts), ("tests", tests)] {
            for (index, script) in list.iter().enumerate() {
                add(format!("{folder}/{}", number(index)), &script.bytes);
            }
        }
        let mut list = String::new();
        for (index, file) in files.iter().enumerate() {
            add(format!("files/{}", number(index)), &file.bytes);
            list.push_str(&format!("{} {:04o} {}\n", number(index), file.mode, file.destination));
        }
        if !list.is_empty() {
            add("files.txt".to_owned(), list.as_bytes());
        }
        if entries.is_empty() {
            return None;
        }
        let bytes = pack(&entries);
        let sha256 = sha256(&bytes);
        Some(Payload { bytes, sha256 })
    }

    /// The document that runs first, where there are certificates.
    pub fn certificates_document(&self) -> Option<String> {
        if self.certificates.is_empty() {
            return None;
        }
        let mut build = unpack();
        build.push(bash("InstallCertificates", 120, INSTALL_CERTIFICATES));
        let about = "Authorities that the image trusts, from kiln.toml.";
        let check = vec![bash("CheckCertificates", 60, &check_certificates(&self.certificates))];
        Some(document(CERTIFICATES, about, true, [("build", build), ("test", check)]))
    }

    /// The document with packages, files, containers, scripts and tests, where there are any.
    pub fn contents_document(&self) -> Option<String> {
        let Self { packages, files, scripts, tests, containers, .. } = self;
        let unpacks = !(files.is_empty() && scripts.is_empty() && tests.is_empty());
        let (mut build, mut test) = (Vec::new(), Vec::new());
        if !packages.is_empty() {
            build.push(install(packages));
        }
        if unpacks {
            build.extend(unpack());
        }
        if !files.is_empty() {
            build.push(bash("LayFilesDown", 300, LAY_FILES_DOWN));
        }
        if !containers.is_empty() {
            build.push(pull(containers));
            test.push(bash("CheckContainers", 300, &each("docker image inspect >/dev/null", containers)));
        }
        if !tests.is_empty() {
            build.push(bash("KeepTests", 60, KEEP_TESTS));
        }
        for (index, script) in scripts.iter().enumerate() {
            let file = format!("{{{{ WorkDir }}}}/contents/scripts/{}", number(index));
            build.push(run("Script", index, script, &file));
        }
        for (index, script) in tests.iter().enumerate() {
            test.push(run("Test", index, script, &format!("{TESTS}/{}", number(index))));
        }
        if build.is_empty() {
            return None;
        }
        Some(document(CONTENTS, "What kiln.toml puts into the image.", unpacks, [("build", build), ("test", test)]))
    }

    /// Do the generated documents fit into what Image Builder takes?
    ///
    /// # Errors
    /// What is wrong with one; too many scripts or containers, for one.
    pub fn check(&self) -> Result<(), Vec<Problem>> {
        let documents = [self.certificates_document(), self.contents_document()];
        documents.into_iter().flatten().try_for_each(|text| Document::parse(&text).map(drop))
    }
}

/// From one, and in the order of a listing.
fn number(index: usize) -> String {
    format!("{:02}", index + 1)
}

/// A document as YAML. An empty phase is left out.
fn document<const N: usize>(name: &str, about: &str, unpacks: bool, phases: [(&str, Vec<Value>); N]) -> String {
    let phases = phases.into_iter().filter(|(_, steps)| !steps.is_empty());
    let mut value = json!({
        "name": format!("kiln-{name}"),
        "description": about,
        "schemaVersion": "1.0",
        "phases": phases.map(|(name, steps)| json!({ "name": name, "steps": steps })).collect::<Vec<_>>(),
    });
    if unpacks {
        value["parameters"] = json!([
            { "ContentsUri": { "type": "string", "description": "The archive in S3, s3://BUCKET/KEY." } },
            { "ContentsSha256": { "type": "string", "description": "The archive's SHA-256, in hexadecimal." } },
            { "WorkDir": {
                "type": "string", "default": "/tmp/kiln", "description": "Where the archive is kept until the bake's end.",
            } },
        ]);
    }
    // The digest must not depend on whether another crate turns on serde_json's `preserve_order`.
    value.sort_all_objects();
    serde_yaml_ng::to_string(&value).expect("a value of JSON is one of YAML")
}

/// A step that runs a script.
fn bash(name: &str, seconds: u32, script: &str) -> Value {
    json!({
        "name": name,
        "action": "ExecuteBash",
        "timeoutSeconds": seconds,
        "inputs": { "commands": [format!("set -euo pipefail\n{script}")] },
    })
}

/// The archive, checked and unpacked.
fn unpack() -> Vec<Value> {
    let mut download = json!({
        "name": "Download",
        "action": "S3Download",
        "maxAttempts": 3,
        "timeoutSeconds": 300,
        "inputs": [{ "source": "{{ ContentsUri }}", "destination": "{{ WorkDir }}/contents.tar.gz" }],
    });
    download.sort_all_objects();
    // S3Download makes no folders and checks no digest.
    vec![bash("MakeWorkDir", 60, "mkdir -p '{{ WorkDir }}/contents'\n"), download, bash("Unpack", 300, UNPACK)]
}

const UNPACK: &str = r#"archive='{{ WorkDir }}/contents.tar.gz'
echo '{{ ContentsSha256 }}  '"$archive" | sha256sum --check --quiet -
tar --extract --gzip --file "$archive" --directory '{{ WorkDir }}/contents'
rm -f "$archive"
"#;

const INSTALL_CERTIFICATES: &str = r#"umask 022
from='{{ WorkDir }}/contents/certificates'
if command -v update-ca-trust >/dev/null; then
  install --mode=644 "$from"/*.crt /etc/pki/ca-trust/source/anchors/
  update-ca-trust extract
else
  mkdir -p /usr/local/share/ca-certificates
  install --mode=644 "$from"/*.crt /usr/local/share/ca-certificates/
  update-ca-certificates
fi
# Node has a list of its own; the runner's environment names this one in addition.
mkdir -p /etc/kiln
cat "$from"/*.crt > /etc/kiln/ca-certificates.pem
"#;

/// Each certificate's first line of content is in the list that programs go by.
fn check_certificates(certificates: &[String]) -> String {
    let mut script = "bundle=/etc/ssl/certs/ca-certificates.crt\n\
                      if [ ! -e \"$bundle\" ]; then bundle=/etc/pki/tls/certs/ca-bundle.crt; fi\n"
        .to_owned();
    for line in certificates.iter().filter_map(|certificate| certificate.lines().nth(2)) {
        script.push_str(&format!("grep --quiet --fixed-strings '{line}' \"$bundle\"\n"));
    }
    script
}

const LAY_FILES_DOWN: &str = r#"from='{{ WorkDir }}/contents'
while read -r number mode destination; do
  echo "$destination"
  install -D --owner=root --group=root --mode="$mode" "$from/files/$number" "$destination"
done < "$from/files.txt"
"#;

const KEEP_TESTS: &str = r"mkdir -p /opt/kiln/tests
install --owner=root --group=root --mode=755 '{{ WorkDir }}/contents/tests/'* /opt/kiln/tests/
";

fn install(packages: &[String]) -> Value {
    let script = format!(
        r#"packages=({})
if command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get --quiet --quiet update
  apt-get --assume-yes --quiet --quiet --no-install-recommends install "${{packages[@]}}"
else
  yum install --assumeyes "${{packages[@]}}"
  # yum of Amazon Linux 2 leaves out a package that it does not know, and ends well.
  for package in "${{packages[@]}}"; do
    rpm --query --whatprovides "$package"
  done
fi
"#,
        packages.join(" ")
    );
    let mut step = bash("InstallPackages", 1800, &script);
    // A mirror's bad minute must not cost the whole bake.
    step["maxAttempts"] = json!(3);
    step
}

fn pull(containers: &[String]) -> Value {
    let script = format!(
        "systemctl start docker.service\n{}systemctl stop docker.service docker.socket\n",
        each("docker pull --quiet", containers)
    );
    let mut step = bash("PullContainers", 1800, &script);
    step["maxAttempts"] = json!(3);
    step
}

fn each(command: &str, containers: &[String]) -> String {
    containers.iter().map(|container| format!("{command} '{container}'\n")).collect()
}

/// A step that runs a script of the user's, and says which it was.
fn run(kind: &str, index: usize, script: &Script, file: &str) -> Value {
    let shown: String = script.path.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let name = format!("{kind}{}-{}", number(index), shown.replace(['/', '.', '_'], "-"));
    let name: String = name.chars().take(100).collect();
    let what = kind.to_lowercase();
    let text = format!(
        "code=0\nDEBIAN_FRONTEND=noninteractive bash '{file}' || code=$?\n\
         if [ \"$code\" -ne 0 ]; then\n  echo \"{what} {shown} ended with exit status $code\" >&2\n  exit 1\nfi\n"
    );
    bash(&name, 3600, &text)
}

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/')
}

#[cfg(test)]
mod tests;
