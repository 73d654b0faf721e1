//! The construct for CDK checks what kiln.toml is checked for: both go through the same examples.

#![cfg(feature = "config")]

use kiln_config::config::Config;
use serde_json::{Value, json};

#[test]
fn what_the_construct_takes_is_taken_and_what_it_refuses_is_refused() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("../../../infra/cdk/test/vectors.json")).unwrap();
    assert!(vectors.len() > 40);
    for vector in vectors {
        let mut fleet = json!({ "instance_types": ["m6i.large"], "min": 1, "max": 4, "network": "create-vpc" });
        for (key, value) in vector["fleet"].as_object().into_iter().flatten() {
            fleet[key] = value.clone();
        }
        let text = |key: &str, otherwise: &str| vector[key].as_str().unwrap_or(otherwise).to_owned();
        let mut file = json!({
            "organization": text("organization", "acme"),
            "region": "eu-central-1",
            "app": { "client_id": text("client_id", "Iv23liEXAMPLE0000000") },
            "runner": {
                "version": text("runner_version", "2.338.0"),
                "sha256": { "x86_64": "a".repeat(64), "aarch64": "b".repeat(64) },
            },
            "fleet": { "linux": fleet },
        });
        for key in ["tags", "github"] {
            if let Some(table) = vector.get(key) {
                file[key] = table.clone();
            }
        }
        let read = Config::from_toml("kiln.toml", &toml::to_string(&file).unwrap());
        assert_eq!(read.is_ok(), vector["accepted"], "{}: {:?}", vector["what"], read.err());
    }
}
