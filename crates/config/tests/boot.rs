//! BootConfig: the document that instances in the field read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use kiln_config::boot::{
    App, BootConfig, BootConfigError, ControllerConfig, DockerAccess, GitHub, KeySource, Lifecycle, MAX_BYTES,
    MetadataAccess, OnDemandConfig, Retirement, Runner, UserData, VERSION, hand_over_key,
};
use kiln_config::model::Registration;

fn boot_config() -> BootConfig {
    BootConfig {
        version: VERSION,
        organization: "acme".parse().unwrap(),
        fleet: "linux".parse().unwrap(),
        github: GitHub {
            api_url: "https://api.github.com".parse().unwrap(),
            url: "https://github.com".parse().unwrap(),
        },
        app: App { issuer: "Iv23liEXAMPLE0000000".to_owned(), installation_id: Some(12_345_678) },
        key: KeySource::Kms("alias/kiln-acme-app-key".to_owned()),
        registration: Registration::Persistent,
        labels: vec!["linux-x64".parse().unwrap()],
        runner_group: "Default".to_owned(),
        runner: Runner {
            version: "2.338.0".parse().unwrap(),
            user: "runner".to_owned(),
            directory: "/opt/actions-runner".to_owned(),
        },
        job_metadata_access: MetadataAccess::Blocked,
        job_docker_access: DockerAccess::Allowed,
        wait_for_docker: false,
        retirement: None,
        environment: BTreeMap::new(),
        lifecycle: Some(Lifecycle {
            group: "kiln-acme-fleet-linux".parse().unwrap(),
            launch_hook: "kiln-launch".to_owned(),
            termination_hook: "kiln-terminate".to_owned(),
            termination_heartbeat_timeout_secs: 300,
            drain_timeout_secs: 21_600,
            failed_boot_grace_secs: 300,
        }),
    }
}

/// A change of this text strands every image baked before it: raise `VERSION` along with it.
#[test]
fn the_document_is_this_very_text() {
    insta::assert_snapshot!(boot_config().to_json().unwrap(), @r#"{"version":1,"organization":"acme","fleet":"linux","github":{"api_url":"https://api.github.com/","url":"https://github.com/"},"app":{"issuer":"Iv23liEXAMPLE0000000","installation_id":12345678},"key":{"kms":"alias/kiln-acme-app-key"},"registration":"persistent","labels":["linux-x64"],"runner_group":"Default","runner":{"version":"2.338.0","user":"runner","directory":"/opt/actions-runner"},"job_metadata_access":"blocked","lifecycle":{"group":"kiln-acme-fleet-linux","launch_hook":"kiln-launch","termination_hook":"kiln-terminate","termination_heartbeat_timeout_secs":300,"drain_timeout_secs":21600,"failed_boot_grace_secs":300}}"#);
}

#[test]
fn every_variant_is_written_in_this_form_and_comes_back() {
    let mut config = boot_config();
    for (key, text) in [
        (KeySource::Kms("alias/k".to_owned()), r#""key":{"kms":"alias/k"}"#),
        (KeySource::SecretsManager("kiln/k".to_owned()), r#""key":{"secrets-manager":"kiln/k"}"#),
        (KeySource::File("/etc/k.pem".to_owned()), r#""key":{"file":"/etc/k.pem"}"#),
    ] {
        config.key = key;
        let json = config.to_json().unwrap();
        assert!(json.contains(text), "{json}");
        assert_eq!(BootConfig::from_json(&json).unwrap(), config);
    }
    config.registration = Registration::Ephemeral;
    config.app.installation_id = None;
    config.lifecycle = None;
    config.retirement = Some(Retirement { max_age_secs: Some(604_800), idle_limit_secs: None });
    config.environment.insert("https_proxy".to_owned(), "http://proxy:3128".to_owned());
    config.job_metadata_access = MetadataAccess::Allowed;
    config.job_docker_access = DockerAccess::Blocked;
    config.wait_for_docker = true;
    let json = config.to_json().unwrap();
    assert!(json.contains(r#""registration":"ephemeral""#), "{json}");
    assert!(json.contains(r#""retirement":{"max_age_secs":604800}"#), "{json}");
    assert!(json.contains(r#""environment":{"https_proxy":"http://proxy:3128"}"#), "{json}");
    assert!(
        json.contains(r#""job_metadata_access":"allowed","job_docker_access":"blocked","wait_for_docker":true"#),
        "{json}"
    );
    assert!(!json.contains("installation_id") && !json.contains("lifecycle") && !json.contains("null"), "{json}");
    assert_eq!(BootConfig::from_json(&json).unwrap(), config);
}

#[test]
fn a_document_of_another_version_is_refused_as_such_whatever_else_is_in_it() {
    let error = BootConfig::from_json(r#"{"version":2,"fleets":[]}"#).unwrap_err();
    assert!(matches!(error, BootConfigError::Version { found: 2 }), "{error:?}");
    insta::assert_snapshot!(error, @"BootConfig version 2 is not supported: this image reads version 1; bake a new image");
}

#[test]
fn what_is_not_of_the_documents_form_is_refused() {
    let json = boot_config().to_json().unwrap();
    for (piece, replacement, reason) in [
        (r#""labels""#, r#""secret":1,"labels""#, "unknown field `secret`"),
        (r#""user""#, r#""shell":1,"user""#, "unknown field `shell`"),
        (r#""version":1,"#, "", "missing field `version`"),
        (r#""version":1,"#, r#""version":"1","#, "invalid type: string \"1\""),
        (r#""fleet":"linux""#, r#""fleet":"Linux""#, "`Linux` is not a fleet's name"),
        (r#"{"kms":"#, r#"{"hsm":"#, "unknown variant `hsm`"),
        (r#""https://github.com/""#, r#""github.com""#, "relative URL without a base"),
    ] {
        assert!(json.contains(piece), "{piece} is not in {json}");
        let error = BootConfig::from_json(&json.replacen(piece, replacement, 1)).unwrap_err().to_string();
        assert!(error.starts_with("the user data is not a BootConfig: ") && error.contains(reason), "{error}");
    }
    BootConfig::from_json("#!/bin/sh").unwrap_err();
    BootConfig::from_json("").unwrap_err();
}

#[test]
fn a_document_may_have_as_many_bytes_as_a_parameter_holds_and_not_one_more() {
    let mut config = boot_config();
    let spare = MAX_BYTES - config.to_json().unwrap().len();
    config.runner_group = format!("Default{}", "x".repeat(spare));
    assert_eq!(config.to_json().unwrap().len(), MAX_BYTES);
    config.runner_group.push('x');
    let error = config.to_json().unwrap_err();
    assert!(matches!(error, BootConfigError::TooLong { bytes } if bytes == MAX_BYTES + 1), "{error:?}");
}

fn on_demand() -> OnDemandConfig {
    OnDemandConfig {
        fleet: "linux".parse().unwrap(),
        bucket: "kiln-control-acme-111122223333-eu-central-1".to_owned(),
        region: "eu-central-1".parse().unwrap(),
        role_id: None,
        hand_over_limit_secs: 600,
        boot_limit_secs: 300,
        job_limit_secs: 432_000,
        runner: boot_config().runner,
        job_metadata_access: MetadataAccess::Blocked,
        job_docker_access: DockerAccess::Allowed,
        wait_for_docker: false,
        environment: BTreeMap::new(),
    }
}

fn controller() -> ControllerConfig {
    let BootConfig { organization, github, app, key, .. } = boot_config();
    let OnDemandConfig { bucket, region, environment, .. } = on_demand();
    ControllerConfig { organization, github, app, key, bucket, region, environment }
}

#[test]
fn each_kind_of_user_data_is_this_very_text_and_comes_back() {
    let all = [
        UserData::Boot(Box::new(boot_config())),
        UserData::OnDemand(Box::new(on_demand())),
        UserData::Controller(Box::new(controller())),
    ];
    for data in &all {
        assert_eq!(UserData::from_json(&data.to_json().unwrap()).unwrap(), *data);
    }
    insta::assert_snapshot!(all[1].to_json().unwrap(), @r#"{"format":1,"on_demand":{"fleet":"linux","bucket":"kiln-control-acme-111122223333-eu-central-1","region":"eu-central-1","hand_over_limit_secs":600,"boot_limit_secs":300,"job_limit_secs":432000,"runner":{"version":"2.338.0","user":"runner","directory":"/opt/actions-runner"},"job_metadata_access":"blocked"}}"#);
    insta::assert_snapshot!(all[2].to_json().unwrap(), @r#"{"format":1,"controller":{"organization":"acme","github":{"api_url":"https://api.github.com/","url":"https://github.com/"},"app":{"issuer":"Iv23liEXAMPLE0000000","installation_id":12345678},"key":{"kms":"alias/kiln-acme-app-key"},"bucket":"kiln-control-acme-111122223333-eu-central-1","region":"eu-central-1"}}"#);
}

#[test]
fn user_data_of_another_kind_or_format_is_refused() {
    let refused = |text: &str| UserData::from_json(text).unwrap_err();
    assert!(matches!(refused(r#"{"format":2,"controller":{}}"#), BootConfigError::Version { found: 2 }));
    assert!(matches!(refused(r#"{"format":1}"#), BootConfigError::Kind));
    assert!(matches!(refused(r#"{"format":1,"on_demand":{"fleet":"linux"}}"#), BootConfigError::Malformed(_)));
    let mut config = on_demand();
    config.environment.insert("LD_PRELOAD".to_owned(), "/tmp/a.so".to_owned());
    let text = UserData::OnDemand(Box::new(config)).to_json().unwrap();
    assert!(matches!(refused(&text), BootConfigError::Variable { name } if name == "LD_PRELOAD"));
}

#[test]
fn a_hand_over_object_has_its_reader_in_its_key() {
    assert_eq!(hand_over_key("AROAEXAMPLE:i-0a"), "runners/AROAEXAMPLE:i-0a/config");
}
