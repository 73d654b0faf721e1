//! What the bootstrap binary is made of, as a CycloneDX document: read out of the binary itself, in which cargo-auditable
//! leaves the list of its crates.
//!
//! Source of the form: <https://cyclonedx.org/docs/1.5/json/>.

use auditable_info::json_from_slice;
use serde_json::{Value, json};

use crate::payload;

/// The list of a binary of ours is some twenty kilobytes when unpacked.
const MOST_BYTES: usize = 1 << 20;

/// The bootstrap binary's name, and its root in the document.
const BOOTSTRAP: &str = "kiln-bootstrap";

/// A crate in the list. Where it leaves a field out, that is the usual case.
#[derive(Debug)]
struct Package {
    name: String,
    version: String,
    /// It only ran while the binary was built.
    build_only: bool,
    /// Places in the list.
    dependencies: Vec<usize>,
    /// The binary's own.
    root: bool,
}

impl Package {
    fn read(package: &Value) -> Option<Self> {
        let indexes = package["dependencies"].as_array().into_iter().flatten();
        Some(Self {
            name: package["name"].as_str()?.to_owned(),
            version: package["version"].as_str()?.to_owned(),
            build_only: package["kind"] == "build",
            dependencies: indexes.filter_map(|index| usize::try_from(index.as_u64()?).ok()).collect(),
            root: package["root"] == true,
        })
    }

    /// What the document calls it.
    fn reference(&self, name: &str) -> String {
        if self.root { name.to_owned() } else { format!("pkg:cargo/{}@{}", self.name, self.version) }
    }
}

fn packages(binary: &[u8]) -> Option<Vec<Package>> {
    let list: Value = serde_json::from_str(&json_from_slice(binary, MOST_BYTES).ok()?).ok()?;
    list["packages"].as_array()?.iter().map(Package::read).collect()
}

/// The crates that a binary says it is made of, with their versions; nothing when it was built without cargo-auditable.
pub fn crates(binary: &[u8]) -> Option<Vec<(String, String)>> {
    Some(packages(binary)?.into_iter().map(|package| (package.name, package.version)).collect())
}

/// The document of the bootstrap binary.
pub fn of_bootstrap(binary: &[u8]) -> Value {
    of(BOOTSTRAP, binary)
}

/// The document of a binary. One that does not say what it is made of is listed alone, its composition as unknown.
pub fn of(name: &str, binary: &[u8]) -> Value {
    let digest = payload::sha256(binary);
    let mut document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "bom-ref": name,
            "name": name,
            "version": env!("CARGO_PKG_VERSION"),
            "hashes": [{ "alg": "SHA-256", "content": digest.as_str() }],
        }},
    });
    match packages(binary) {
        Some(packages) => {
            let others = packages.iter().filter(|package| !package.root);
            document["components"] = others.map(|package| component(package, name)).collect();
            document["dependencies"] = packages.iter().map(|package| depends(package, &packages, name)).collect();
        }
        None => document["compositions"] = json!([{ "aggregate": "unknown", "dependencies": [name] }]),
    }
    // The payload's digest must not depend on whether another crate turns on serde_json's `preserve_order`.
    document.sort_all_objects();
    document
}

fn component(package: &Package, name: &str) -> Value {
    let address = package.reference(name);
    json!({
        "type": "library",
        "bom-ref": address,
        "name": package.name,
        "version": package.version,
        "purl": address,
        "scope": if package.build_only { "excluded" } else { "required" },
    })
}

fn depends(package: &Package, all: &[Package], name: &str) -> Value {
    let on: Vec<String> =
        package.dependencies.iter().filter_map(|index| all.get(*index)).map(|other| other.reference(name)).collect();
    json!({ "ref": package.reference(name), "dependsOn": on })
}
