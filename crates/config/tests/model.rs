//! The names' rules.

use kiln_config::model::{Architecture, FleetName, InstanceType, NodeVersion, RunnerVersion};

#[test]
fn the_longest_runner_name_fits() {
    let fleet: FleetName = "a".repeat(24).parse().unwrap();
    "a".repeat(25).parse::<FleetName>().unwrap_err();
    // An instance id of today, and the suffix of an ephemeral boot. GitHub allows 64 characters.
    assert!(format!("{fleet}-i-0123456789abcdef0-01234567").len() <= 64);
}

#[test]
fn a_family_tells_its_processor() {
    // From EC2's list of instance types, one of each pattern of name.
    for (names, architecture) in [
        ("m6g m7gd c7gn c8gb t4g a1 x2gd im4gn is4gen g5g hpc7g i8ge p6e-gb200", Architecture::Aarch64),
        ("m6i m5 c5n t3a g4dn g6e gr6 p4de p6-b200 u-6tb1 u7i-12tb u7in-16tb i7ie trn1 inf2 z1d", Architecture::X86_64),
    ] {
        for name in names.split(' ') {
            let instance_type: InstanceType = format!("{name}.large").parse().unwrap();
            assert_eq!(instance_type.architecture(), architecture, "{name}");
        }
    }
}

#[test]
fn versions_compare_by_their_numbers() {
    let version = |text: &str| text.parse::<RunnerVersion>().unwrap();
    for (older, newer) in [("2.99.0", "2.329.0"), ("2.329.0", "2.329.10"), ("2.329.9", "2.329.10"), ("9.0.0", "10.0.0")]
    {
        assert!(version(older) < version(newer), "{older} and {newer}");
        assert!(older.parse::<NodeVersion>().unwrap() < newer.parse::<NodeVersion>().unwrap(), "{older} and {newer}");
    }
    assert_eq!(version("999999.0.1").numbers(), [999_999, 0, 1]);
    assert_eq!("24.19.0".parse::<NodeVersion>().unwrap().major(), 24);
    for malformed in ["", "2.338", "v2.338.0", "2.338.0-beta", "2..0", "2.338.1000000"] {
        malformed.parse::<RunnerVersion>().unwrap_err();
    }
}
