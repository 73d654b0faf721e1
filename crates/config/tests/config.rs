//! What is wrong with a kiln.toml is shown with line, column, expectation and hint, and all of it at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "config")]

use kiln_config::boot::{DockerAccess, MetadataAccess, Retirement};
use kiln_config::config::{AppId, Config, Network};
use kiln_config::model::{Architecture, KeyStore, Registration};

/// The least that is valid, and what each test breaks.
const VALID: &str = r#"organization = "acme"
region = "eu-central-1"

[app]
client_id = "Iv23liEXAMPLE"

[runner]
version = "2.338.0"
sha256 = { x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }

[fleet.linux]
instance_types = ["m6i.large"]
min = 1
max = 4
network = "create-vpc"
"#;

const DIGEST: &str = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32";

fn config(text: &str) -> Config {
    Config::from_toml("kiln.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

/// What is said of [`VALID`] with pieces of it replaced.
fn with<const N: usize>(replacements: [(&str, &str); N]) -> String {
    let replace = |text: String, (piece, replacement): (&str, &str)| {
        assert_eq!(text.matches(piece).count(), 1, "{piece}");
        text.replace(piece, replacement)
    };
    replacements.into_iter().fold(VALID.to_owned(), replace)
}

fn error(text: &str) -> String {
    Config::from_toml("kiln.toml", text).unwrap_err().render(false)
}

/// A fleet with more in it.
fn fleet(more: &str) -> String {
    format!("{VALID}{more}\n")
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = config(VALID);
    assert_eq!(config.app.id, AppId::Client("Iv23liEXAMPLE".to_owned()));
    assert_eq!(config.github.url.as_str(), "https://github.com/");
    assert_eq!(config.github.api_url.as_str(), "https://api.github.com/");
    assert_eq!(config.runner.release_url.as_str(), "https://github.com/actions/runner/releases/download");
    let fleet = config.fleets.values().next().unwrap();
    assert_eq!(
        (fleet.min, fleet.max, fleet.termination_heartbeat_timeout_secs, fleet.drain_timeout_secs),
        (1, 4, 300, 21_600)
    );
    assert_eq!((fleet.registration, fleet.architecture), (Registration::Persistent, Architecture::X86_64));
    assert_eq!((fleet.key_store, fleet.runner_group.as_str()), (KeyStore::Kms, "Default"));
    assert_eq!((fleet.image.as_str(), fleet.labels.len()), ("al2023-x86-64", 0));
    assert_eq!(fleet.network, Network::NewVpc);
}

#[test]
fn a_fleets_key_store_goes_before_the_apps() {
    let app = with([("client_id", "key_store = \"secrets-manager\"\nclient_id")]);
    assert_eq!(config(&app).fleets.values().next().unwrap().key_store, KeyStore::SecretsManager);
    let both = format!("{app}key_store = \"kms\"\n");
    assert_eq!(config(&both).fleets.values().next().unwrap().key_store, KeyStore::Kms);
}

#[test]
fn an_ephemeral_fleet_may_be_empty() {
    let text = with([("min = 1", "min = 0\nregistration = \"ephemeral\"\nlabels = [\"once\"]")]);
    assert_eq!(config(&text).fleets.values().next().unwrap().min, 0);
}

#[test]
fn the_api_follows_from_the_web_address() {
    for (github, url, api_url) in [
        ("", "https://github.com/", "https://api.github.com/"),
        ("url = \"https://github.com/\"", "https://github.com/", "https://api.github.com/"),
        ("url = \"https://ghes.example\"", "https://ghes.example/", "https://ghes.example/api/v3"),
        ("url = \"https://ghes.example:8443/\"", "https://ghes.example:8443/", "https://ghes.example:8443/api/v3"),
        ("url = \"https://acme.ghe.com\"", "https://acme.ghe.com/", "https://api.acme.ghe.com/"),
        ("url = \"http://127.0.0.1:8080\"", "http://127.0.0.1:8080/", "http://127.0.0.1:8080/api/v3"),
        ("url = \"http://[::1]:80\"\napi_url = \"http://localhost:81/\"", "http://[::1]/", "http://localhost:81/"),
        (
            "url = \"https://github.com\"\napi_url = \"https://proxy.example/gh/\"",
            "https://github.com/",
            "https://proxy.example/gh",
        ),
    ] {
        let config = config(&with([("[runner]", &format!("[github]\n{github}\n[runner]"))]));
        assert_eq!((config.github.url.as_str(), config.github.api_url.as_str()), (url, api_url), "{github}");
    }
}

#[test]
fn an_empty_file_lacks_all_that_is_required() {
    insta::assert_snapshot!(error(""), @r#"
    error: `organization`, `region`, `app`, `runner`, `fleet` are missing
     --> kiln.toml:1:1
      |
    1 |
      | ^ expected in the top level, above the first [table]
      |
      = help: `organization = "acme"`: The GitHub organization's login.
              `region = "eu-central-1"`: The AWS region of the fleets, images and keys.
              `app`: The GitHub App that registers runners.
              `runner`: The pinned release of actions/runner.
              `fleet`: The fleets, by name: lower-case letters, digits and hyphens.
    "#);
}

#[test]
fn syntax_is_the_toml_parsers_word() {
    insta::assert_snapshot!(error(&with([("\"acme\"", "acme")])), @r"
    error: string values must be quoted
     --> kiln.toml:1:16
      |
    1 | organization = acme
      |                ^^^^ expected literal string
    ");
    insta::assert_snapshot!(error(&format!("{VALID}max = 5\n")), @r"
    error: duplicate key
      --> kiln.toml:16:1
       |
    16 | max = 5
       | ^^^
    ");
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_one() {
    insta::assert_snapshot!(error(&fleet("lables = [\"a\"]")), @r#"
    error: unknown key `lables` in [fleet.linux]
      --> kiln.toml:16:1
       |
    16 | lables = ["a"]
       | ^^^^^^ did you mean `labels`?
       |
       = help: [fleet.linux] has: canary_check, drain_timeout_secs, egress_ports, environment, failed_boot_grace_secs, idle_limit_secs, image, instance_types, job_docker_access, job_metadata_access, key_store, labels, linger_secs, max, max_age_secs, min, min_idle, network, registration, runner_group, session_manager, spot, termination_heartbeat_timeout_secs, volume, wait_for_docker
    "#);
    insta::assert_snapshot!(error(&with([("instance_types", "instance-types")])), @r#"
    error: unknown key `instance-types` in [fleet.linux]
      --> kiln.toml:12:1
       |
    12 | instance-types = ["m6i.large"]
       | ^^^^^^^^^^^^^^ did you mean `instance_types`?
       |
       = help: [fleet.linux] has: canary_check, drain_timeout_secs, egress_ports, environment, failed_boot_grace_secs, idle_limit_secs, image, instance_types, job_docker_access, job_metadata_access, key_store, labels, linger_secs, max, max_age_secs, min, min_idle, network, registration, runner_group, session_manager, spot, termination_heartbeat_timeout_secs, volume, wait_for_docker
    "#);
}

#[test]
fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
    insta::assert_snapshot!(error(&fleet("subnets = [\"subnet-01234567\"]")), @r#"
    error: unknown key `subnets` in [fleet.linux]
      --> kiln.toml:16:1
       |
    16 | subnets = ["subnet-01234567"]
       | ^^^^^^^ `subnets` is a key of [fleet.NAME.network]
       |
       = help: [fleet.linux] has: canary_check, drain_timeout_secs, egress_ports, environment, failed_boot_grace_secs, idle_limit_secs, image, instance_types, job_docker_access, job_metadata_access, key_store, labels, linger_secs, max, max_age_secs, min, min_idle, network, registration, runner_group, session_manager, spot, termination_heartbeat_timeout_secs, volume, wait_for_docker
    "#);
    insta::assert_snapshot!(error(&with([("organization = \"acme\"\n", ""), ("[app]", "[app]\norganization = \"acme\"")])), @r#"
    error: `organization` is missing
     --> kiln.toml:1:1
      |
    1 | region = "eu-central-1"
      | ^ expected in the top level, above the first [table]
      |
      = help: `organization = "acme"`: The GitHub organization's login.

    error: unknown key `organization` in [app]
     --> kiln.toml:4:1
      |
    4 | organization = "acme"
      | ^^^^^^^^^^^^ `organization` is a key of the top level, above the first [table]
      |
      = help: [app] has: app_id, client_id, installation_id, key_store
    "#);
}

#[test]
fn a_value_given_as_a_key_is_understood() {
    insta::assert_snapshot!(error(&with([("network = \"create-vpc\"", "create_vpc = true")])), @r#"
    error: `network` is missing
      --> kiln.toml:11:1
       |
    11 | [fleet.linux]
       | ^^^^^^^^^^^^^ expected in [fleet.linux]
       |
       = help: `network`: The network of the instances.

    error: unknown key `create_vpc` in [fleet.linux]
      --> kiln.toml:15:1
       |
    15 | create_vpc = true
       | ^^^^^^^^^^ did you mean `network = "create-vpc"`?
       |
       = help: [fleet.linux] has: canary_check, drain_timeout_secs, egress_ports, environment, failed_boot_grace_secs, idle_limit_secs, image, instance_types, job_docker_access, job_metadata_access, key_store, labels, linger_secs, max, max_age_secs, min, min_idle, network, registration, runner_group, session_manager, spot, termination_heartbeat_timeout_secs, volume, wait_for_docker
    "#);
}

#[test]
fn a_key_like_no_other_is_told_which_there_are() {
    insta::assert_snapshot!(error(&with([("[app]", "[app]\nwebhook = 1")])), @r"
    error: unknown key `webhook` in [app]
     --> kiln.toml:5:1
      |
    5 | webhook = 1
      | ^^^^^^^ expected one of the keys below
      |
      = help: [app] has: app_id, client_id, installation_id, key_store
    ");
}

#[test]
fn a_value_of_another_kind_is_told_what_was_expected() {
    insta::assert_snapshot!(error(&with([("min = 1", "min = \"one\"")])), @r#"
    error: `min` is a string
      --> kiln.toml:13:7
       |
    13 | min = "one"
       |       ^^^^^ expected an integer
       |
       = help: `min = 1`: The minimum number of instances. Auto Scaling replaces failed ones.
    "#);
    insta::assert_snapshot!(error(&with([("[\"m6i.large\"]", "\"m6i.large\"")])), @r#"
    error: `instance_types` is a string
      --> kiln.toml:12:18
       |
    12 | instance_types = "m6i.large"
       |                  ^^^^^^^^^^^ expected an array
       |
       = help: `instance_types = ["m6i.large","m5.large"]`: Instance types in order of preference, all of the image's architecture.
    "#);
    insta::assert_snapshot!(error(&with([("[\"m6i.large\"]", "[\"m6i.large\", 5]")])), @r#"
    error: an entry of `instance_types` is an integer
      --> kiln.toml:12:32
       |
    12 | instance_types = ["m6i.large", 5]
       |                                ^ expected a string
    "#);
    insta::assert_snapshot!(error(&with([("network = \"create-vpc\"", "network = false")])), @r#"
    error: `network` is a boolean
      --> kiln.toml:15:11
       |
    15 | network = false
       |           ^^^^^ expected "create-vpc" or a table
       |
       = help: `network`: The network of the instances.
    "#);
}

#[test]
fn a_fleet_without_a_name_is_told_to_take_one() {
    insta::assert_snapshot!(error(&with([("[fleet.linux]", "[fleet]")])), @r#"
    error: `instance_types` is an array
      --> kiln.toml:12:18
       |
    12 | instance_types = ["m6i.large"]
       |                  ^^^^^^^^^^^^^ expected a table
       |
       = help: a fleet has a name: write [fleet.linux], for one, above `instance_types`

    error: `min` is an integer
      --> kiln.toml:13:7
       |
    13 | min = 1
       |       ^ expected a table
       |
       = help: a fleet has a name: write [fleet.linux], for one, above `min`

    error: `max` is an integer
      --> kiln.toml:14:7
       |
    14 | max = 4
       |       ^ expected a table
       |
       = help: a fleet has a name: write [fleet.linux], for one, above `max`

    error: `network` is a string
      --> kiln.toml:15:11
       |
    15 | network = "create-vpc"
       |           ^^^^^^^^^^^^ expected a table
       |
       = help: a fleet has a name: write [fleet.linux], for one, above `network`
    "#);
}

#[test]
fn a_word_that_is_none_of_the_choices_is_told_them() {
    insta::assert_snapshot!(error(&fleet("registration = \"ephemera\"")), @r#"
    error: `registration` is `ephemera`
      --> kiln.toml:16:16
       |
    16 | registration = "ephemera"
       |                ^^^^^^^^^^ expected "persistent" or "ephemeral" or "on-demand"
       |
       = help: did you mean "ephemeral"?
    "#);
    insta::assert_snapshot!(error(&fleet("[image.it]\narchitecture = \"amd64\"")), @r#"
    error: `architecture` is `amd64`
      --> kiln.toml:17:16
       |
    17 | architecture = "amd64"
       |                ^^^^^^^ expected "x86_64" or "aarch64"
    "#);
    insta::assert_snapshot!(error(&with([("\"create-vpc\"", "\"vpc-01234567\"")])), @r#"
    error: `network` is `vpc-01234567`
      --> kiln.toml:15:11
       |
    15 | network = "vpc-01234567"
       |           ^^^^^^^^^^^^^^ expected "create-vpc"
    "#);
}

#[test]
fn numbers_have_bounds() {
    insta::assert_snapshot!(error(&with([("max = 4", "max = 0")])), @r"
    error: `max` is 0
      --> kiln.toml:14:7
       |
    14 | max = 0
       |       ^ expected 1 to 10000
    ");
    insta::assert_snapshot!(error(&with([("min = 1", "min = -1")])), @r"
    error: `min` is -1
      --> kiln.toml:13:7
       |
    13 | min = -1
       |       ^^ expected 0 to 10000
    ");
    insta::assert_snapshot!(error(&with([("max = 4", "max = 5_000_000_000")])), @r"
    error: `max` is 5000000000
      --> kiln.toml:14:7
       |
    14 | max = 5_000_000_000
       |       ^^^^^^^^^^^^^ expected 1 to 10000
    ");
    insta::assert_snapshot!(error(&fleet("termination_heartbeat_timeout_secs = 5")), @r"
    error: `termination_heartbeat_timeout_secs` is 5
      --> kiln.toml:16:38
       |
    16 | termination_heartbeat_timeout_secs = 5
       |                                      ^ expected 30 to 7200
    ");
    insta::assert_snapshot!(error(&fleet("drain_timeout_secs = 172_801")), @r"
    error: `drain_timeout_secs` is 172801
      --> kiln.toml:16:22
       |
    16 | drain_timeout_secs = 172_801
       |                      ^^^^^^^ expected 60 to 172800
    ");
}

#[test]
fn min_is_at_most_max() {
    insta::assert_snapshot!(error(&with([("min = 1", "min = 5")])), @r"
    error: `min` is 5, more than `max`
      --> kiln.toml:13:7
       |
    13 | min = 5
       |       ^ expected at most 4
    14 | max = 4
       |       - `max`
    ");
}

#[test]
fn arrays_have_bounds() {
    insta::assert_snapshot!(error(&with([("[\"m6i.large\"]", "[]")])), @r"
    error: `instance_types` has 0 entries
      --> kiln.toml:12:18
       |
    12 | instance_types = []
       |                  ^^ expected at least 1
    ");
    insta::assert_snapshot!(error(&with([("\"m6i.large\"", "\"a.a\", \"a.b\", \"a.c\", \"a.d\", \"a.e\", \"a.f\"")])), @r#"
    error: `instance_types` has 6 entries
      --> kiln.toml:12:18
       |
    12 | instance_types = ["a.a", "a.b", "a.c", "a.d", "a.e", "a.f"]
       |                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected at most 5
    "#);
}

#[test]
fn there_is_a_fleet() {
    insta::assert_snapshot!(error(VALID.split("[fleet.linux]").next().unwrap()), @r#"
    error: `fleet` is missing
     --> kiln.toml:1:1
      |
    1 | organization = "acme"
      | ^ expected in the top level, above the first [table]
      |
      = help: `fleet`: The fleets, by name: lower-case letters, digits and hyphens.
    "#);
    insta::assert_snapshot!(error(&format!("{}[fleet]\n", VALID.split("[fleet.linux]").next().unwrap())), @r"
    error: `fleet` is empty
      --> kiln.toml:11:1
       |
    11 | [fleet]
       | ^^^^^^^
       |
       = help: `fleet`: The fleets, by name: lower-case letters, digits and hyphens.
    ");
}

#[test]
fn names_have_forms() {
    insta::assert_snapshot!(error(&with([("\"acme\"", "\"acme--inc\"")])), @r#"
    error: `organization` is `acme--inc`
     --> kiln.toml:1:16
      |
    1 | organization = "acme--inc"
      |                ^^^^^^^^^^^ expected an organization's login: letters, digits and single hyphens, at most 39 characters
    "#);
    insta::assert_snapshot!(error(&with([("\"eu-central-1\"", "\"eu-central-1b\"")])), @r#"
    error: `region` is `eu-central-1b`
     --> kiln.toml:2:10
      |
    2 | region = "eu-central-1b"
      |          ^^^^^^^^^^^^^^^ expected an AWS region's code such as eu-central-1
      |
      = help: `eu-central-1b` is an availability zone of eu-central-1
    "#);
    insta::assert_snapshot!(error(&with([("[fleet.linux]", "[fleet.Linux]")])), @r#"
    error: the fleet's name is `Linux`
      --> kiln.toml:11:8
       |
    11 | [fleet.Linux]
       |        ^^^^^ expected a fleet's name: a lower-case letter, then lower-case letters, digits or hyphens, at most 24 characters
       |
       = help: write it in lower case: "linux"
    "#);
    insta::assert_snapshot!(error(&with([("m6i.large", "m6i")])), @r#"
    error: an entry of `instance_types` is `m6i`
      --> kiln.toml:12:19
       |
    12 | instance_types = ["m6i"]
       |                   ^^^^^ expected an instance type such as m6i.large
    "#);
}

#[test]
fn the_app_has_one_name() {
    insta::assert_snapshot!(error(&with([("client_id = \"Iv23liEXAMPLE\"", "")])), @r"
    error: nothing names the App
     --> kiln.toml:4:1
      |
    4 | [app]
      | ^^^^^ expected `client_id` or `app_id` in [app]
      |
      = help: the App's settings at GitHub show its client id at the top
    ");
    insta::assert_snapshot!(error(&with([("[app]", "[app]\napp_id = 123456")])), @r#"
    error: both `client_id` and `app_id` name the App
     --> kiln.toml:5:10
      |
    5 | app_id = 123456
      |          ^^^^^^ expected one of them
    6 | client_id = "Iv23liEXAMPLE"
      |             --------------- the other
      |
      = help: keep `client_id`, which GitHub recommends
    "#);
    insta::assert_snapshot!(error(&with([("\"Iv23liEXAMPLE\"", "\"123456\"")])), @r#"
    error: `client_id` is `123456`
     --> kiln.toml:5:13
      |
    5 | client_id = "123456"
      |             ^^^^^^^^ expected a client id such as Iv23liEXAMPLE0000000
      |
      = help: a number is the App's id: write `app_id = 123456`
    "#);
}

#[test]
fn the_runner_is_one_that_can_register() {
    insta::assert_snapshot!(error(&with([("2.338.0", "2.328.1")])), @r#"
    error: runner 2.328.1 can't register any more
     --> kiln.toml:8:11
      |
    8 | version = "2.328.1"
      |           ^^^^^^^^^ expected 2.329.0 or newer
      |
      = help: GitHub refuses older ones; https://github.com/actions/runner/releases shows the newest
    "#);
    insta::assert_snapshot!(error(&with([("2.338.0", "v2.338.0")])), @r#"
    error: `version` is `v2.338.0`
     --> kiln.toml:8:11
      |
    8 | version = "v2.338.0"
      |           ^^^^^^^^^^ expected a runner version such as 2.338.0
      |
      = help: leave out the `v` of the release's tag
    "#);
}

#[test]
fn digests_are_digests() {
    insta::assert_snapshot!(error(&with([("\"af4b", "\"sha256:AF4B")])), @r#"
    error: the digest for x86_64 is `sha256:AF4B794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32`
     --> kiln.toml:9:21
      |
    9 | sha256 = { x86_64 = "sha256:AF4B794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }
      |                     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected a SHA-256 digest: 64 lower-case hexadecimal digits
      |
      = help: write it as "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32"
    "#);
    insta::assert_snapshot!(error(&with([("a05ca41d32", "")])), @r#"
    error: the digest for x86_64 is `af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25`
     --> kiln.toml:9:21
      |
    9 | sha256 = { x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25" }
      |                     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected a SHA-256 digest: 64 lower-case hexadecimal digits
    "#);
    insta::assert_snapshot!(error(&with([("sha256 = { ", &format!("sha256 = {{ aarch64 = \"{DIGEST}\", "))])), @r#"
    error: both architectures have the same digest
     --> kiln.toml:9:22
      |
    9 | ... = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32", x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }
      |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^           ------------------------------------------------------------------ the same
      |       |
      |       expected the digest of the arm64 tarball
    "#);
}

#[test]
fn every_architecture_in_use_is_pinned() {
    insta::assert_snapshot!(error(&with([("m6i", "m6g")])), @r#"
    error: fleet `linux` runs on aarch64, for which no runner is pinned
      --> kiln.toml:11:8
       |
     9 | sha256 = { x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }
       |          ------------------------------------------------------------------------------- expected a digest for aarch64 in here
    10 |
    11 | [fleet.linux]
       |        ^^^^^
       |
       = help: add `aarch64 = "…"`: the SHA-256 of actions-runner-linux-arm64-VERSION.tar.gz on the release's page
    "#);
    insta::assert_snapshot!(error(&with([("{ x86_64 = \"af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32\" }", "{}")])), @r#"
    error: fleet `linux` runs on x86_64, for which no runner is pinned
      --> kiln.toml:11:8
       |
     9 | sha256 = {}
       |          -- expected a digest for x86_64 in here
    10 |
    11 | [fleet.linux]
       |        ^^^^^
       |
       = help: add `x86_64 = "…"`: the SHA-256 of actions-runner-linux-x64-VERSION.tar.gz on the release's page
    "#);
}

#[test]
fn amazon_linux_2_is_for_x86_64() {
    insta::assert_snapshot!(error(&fleet("[image.old]\nbase = \"amazon-linux-2\"\narchitecture = \"aarch64\"")), @r#"
    error: no JavaScript action would run on amazon-linux-2 for aarch64
      --> kiln.toml:18:16
       |
    18 | architecture = "aarch64"
       |                ^^^^^^^^^ expected x86_64 on amazon-linux-2
       |
       = help: set `base = "amazon-linux-2023"`: the runner's Node needs glibc 2.28, Amazon Linux 2 has 2.26, and nobody builds Node for that and aarch64
    "#);
}

#[test]
fn instance_types_have_the_fleets_architecture() {
    insta::assert_snapshot!(error(&with([("\"m6i.large\"", "\"m6i.large\", \"c7gn.large\"")])), @r#"
    error: c7gn.large has a processor for aarch64, the fleet's image is for x86_64
      --> kiln.toml:12:32
       |
    12 | instance_types = ["m6i.large", "c7gn.large"]
       |                                ^^^^^^^^^^^^ expected a type for x86_64
       |
       = help: a fleet without `image` has the architecture of its first instance type
    "#);
    let arm = "image = \"arm\"\n[image.arm]\narchitecture = \"aarch64\"";
    let text = fleet(arm).replace("sha256 = { x86_64", "sha256 = { aarch64");
    insta::assert_snapshot!(error(&text), @r#"
    error: m6i.large has a processor for x86_64, the fleet's image is for aarch64
      --> kiln.toml:12:19
       |
    12 | instance_types = ["m6i.large"]
       |                   ^^^^^^^^^^^ expected a type for aarch64
    ...
    16 | image = "arm"
       |         ----- the fleet's image
       |
       = help: choose another type, or set `architecture = "x86_64"` in [image.arm]
    "#);
}

#[test]
fn nothing_is_listed_twice() {
    insta::assert_snapshot!(error(&fleet("labels = [\"gpu\", \"x\", \"GPU\"]")), @r#"
    error: `GPU` is in `labels` twice
      --> kiln.toml:16:23
       |
    16 | labels = ["gpu", "x", "GPU"]
       |           -----       ^^^^^ expected each once
       |           |
       |           the first
    "#);
    insta::assert_snapshot!(error(&with([("\"m6i.large\"", "\"m6i.large\", \"m6i.large\"")])), @r#"
    error: `m6i.large` is in `instance_types` twice
      --> kiln.toml:12:32
       |
    12 | instance_types = ["m6i.large", "m6i.large"]
       |                   -----------  ^^^^^^^^^^^ expected each once
       |                   |
       |                   the first
    "#);
}

#[test]
fn labels_are_labels() {
    insta::assert_snapshot!(error(&fleet("labels = [\"a,b\"]")), @r#"
    error: an entry of `labels` is `a,b`
      --> kiln.toml:16:11
       |
    16 | labels = ["a,b"]
       |           ^^^^^ expected a label: at most 256 characters, no comma, no blank at its ends
    "#);
    insta::assert_snapshot!(error(&fleet("registration = \"ephemeral\"")), @r#"
    error: an ephemeral fleet has no label
      --> kiln.toml:11:8
       |
    11 | [fleet.linux]
       |        ^^^^^ expected `labels` with at least one
       |
       = help: GitHub makes no just-in-time configuration without one; `labels = ["linux-x64"]`, for one
    "#);
}

#[test]
fn a_runner_group_has_a_name() {
    insta::assert_snapshot!(error(&fleet("runner_group = \"\"")), @r#"
    error: `runner_group` is empty
      --> kiln.toml:16:16
       |
    16 | runner_group = ""
       |                ^^ expected a group's name, without blanks around it
       |
       = help: `Default` is the one every organization has
    "#);
    insta::assert_snapshot!(error(&fleet("runner_group = \" Default\"")), @r#"
    error: `runner_group` is ` Default`
      --> kiln.toml:16:16
       |
    16 | runner_group = " Default"
       |                ^^^^^^^^^^ expected a group's name, without blanks around it
       |
       = help: `Default` is the one every organization has
    "#);
}

#[test]
fn a_network_is_whole() {
    insta::assert_snapshot!(error(&with([("\"create-vpc\"", "{ subnets = [\"subnet-01234567\"] }")])), @r#"
    error: `vpc` is missing
      --> kiln.toml:15:11
       |
    15 | network = { subnets = ["subnet-01234567"] }
       |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected in [fleet.linux.network]
       |
       = help: `vpc = "vpc-0123456789abcdef0"`: The VPC of the subnets.
    "#);
    insta::assert_snapshot!(error(&with([("\"create-vpc\"", "{ vpc = \"vpc-01234567\", subnets = [] }")])), @r#"
    error: `subnets` has 0 entries
      --> kiln.toml:15:45
       |
    15 | network = { vpc = "vpc-01234567", subnets = [] }
       |                                             ^^ expected at least 1
    "#);
    insta::assert_snapshot!(error(&with([("\"create-vpc\"", "{ vpc = \"vpc-1\", subnets = [\"subnet-01234567\", \"subnet-x\"] }")])), @r#"
    error: `vpc` is `vpc-1`
      --> kiln.toml:15:19
       |
    15 | network = { vpc = "vpc-1", subnets = ["subnet-01234567", "subnet-x"] }
       |                   ^^^^^^^ expected a VPC's id such as vpc-0123456789abcdef0

    error: an entry of `subnets` is `subnet-x`
      --> kiln.toml:15:58
       |
    15 | network = { vpc = "vpc-1", subnets = ["subnet-01234567", "subnet-x"] }
       |                                                          ^^^^^^^^^^ expected a subnet id such as subnet-0123456789abcdef0
    "#);
}

#[test]
fn a_drain_ends_before_auto_scaling_ends_it() {
    insta::assert_snapshot!(error(&fleet("termination_heartbeat_timeout_secs = 30")), @r"
    error: a drain of 21600 s takes more than 100 heartbeats of 30 s
      --> kiln.toml:16:38
       |
    16 | termination_heartbeat_timeout_secs = 30
       |                                      ^^ Auto Scaling would end it after 3000 s
       |
       = help: set `termination_heartbeat_timeout_secs` to at least 216, or `drain_timeout_secs` to at most 3000
    ");
    insta::assert_snapshot!(error(&fleet("termination_heartbeat_timeout_secs = 300\ndrain_timeout_secs = 86400")), @r"
    error: a drain of 86400 s takes more than 100 heartbeats of 300 s
      --> kiln.toml:17:22
       |
    16 | termination_heartbeat_timeout_secs = 300
       |                                      --- the heartbeat
    17 | drain_timeout_secs = 86400
       |                      ^^^^^ Auto Scaling would end it after 30000 s
       |
       = help: set `termination_heartbeat_timeout_secs` to at least 864, or `drain_timeout_secs` to at most 30000
    ");
}

#[test]
fn secrets_travel_by_https() {
    insta::assert_snapshot!(error(&with([("[runner]", "[github]\nurl = \"http://ghes.example\"\n[runner]")])), @r#"
    error: `url` is `http://ghes.example`
     --> kiln.toml:8:7
      |
    8 | url = "http://ghes.example"
      |       ^^^^^^^^^^^^^^^^^^^^^ expected an https address
      |
      = help: tokens and the runner travel there; http is for an address of this machine, such as 127.0.0.1
    "#);
    insta::assert_snapshot!(error(&with([("[runner]\n", "[runner]\nrelease_url = \"ftp://mirror.example\"\n")])), @r#"
    error: `release_url` is `ftp://mirror.example`
     --> kiln.toml:8:15
      |
    8 | release_url = "ftp://mirror.example"
      |               ^^^^^^^^^^^^^^^^^^^^^^ expected an address that begins with https://
    "#);
    insta::assert_snapshot!(error(&with([("[runner]", "[github]\nurl = \"https://me:secret@ghes.example\"\n[runner]")])), @r"
    error: an address with a password in it does not belong into this file
    --> kiln.toml:8
     = help: take it out: kiln.toml holds no secret. If it was ever committed or shown, revoke it where it comes from
    ");
}

#[test]
fn githubs_addresses_belong_together() {
    insta::assert_snapshot!(error(&with([("[runner]", "[github]\nurl = \"https://github.com/acme\"\n[runner]")])), @r#"
    error: `url` is `https://github.com/acme`
     --> kiln.toml:8:7
      |
    8 | url = "https://github.com/acme"
      |       ^^^^^^^^^^^^^^^^^^^^^^^^^ expected GitHub's web address, without a path
      |
      = help: the API's address is `api_url`, the organization's name is `organization`
    "#);
    insta::assert_snapshot!(error(&with([("[runner]", "[github]\napi_url = \"https://ghes.example/api/v3\"\n[runner]")])), @r#"
    error: `api_url` is not github.com's, and there is no `url`
     --> kiln.toml:8:11
      |
    8 | api_url = "https://ghes.example/api/v3"
      |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: add the `url` of the GitHub that this API belongs to: a runner is configured with it
    "#);
    insta::assert_snapshot!(error(&with([("[runner]", "[github]\nurl = \"https://ghes.example?x\"\n[runner]")])), @r#"
    error: `url` is `https://ghes.example?x`
     --> kiln.toml:8:7
      |
    8 | url = "https://ghes.example?x"
      |       ^^^^^^^^^^^^^^^^^^^^^^^^ expected an address without `?` and `#`
    "#);
}

#[test]
fn a_private_key_is_refused() {
    insta::assert_snapshot!(error(&with([("client_id", "private_key = \"-----BEGIN RSA PRIVATE KEY-----\"\nclient_id")])), @r"
    error: a private key does not belong into this file
    --> kiln.toml:5
     = help: take it out, and install it with `cargo xtask rotate-key --pem FILE`; if it was ever committed, delete it in the App's settings and generate another
    ");
}

#[test]
fn a_boot_config_that_does_not_fit_into_a_parameter_is_told_at_the_labels() {
    let labels: Vec<String> = (0..40).map(|n| format!("\"{}{n}\"", "x".repeat(120))).collect();
    let wrong = error(&fleet(&format!("labels = [{}]", labels.join(", "))));
    assert!(wrong.contains("more than the 4096") && wrong.contains("kiln.toml:16:10"), "{wrong}");
    assert!(wrong.contains("fewer or shorter labels, or a smaller `environment`"), "{wrong}");
}

#[test]
fn a_whole_error_says_how_much_is_wrong_and_shows_it_in_order() {
    let text =
        with([("\"eu-central-1\"", "\"Frankfurt\""), ("min = 1", "min = 9"), ("m6i", "m6g"), ("2.338.0", "2.100.0")]);
    insta::assert_snapshot!(Config::from_toml("ops/kiln.toml", &text).unwrap_err(), @r#"
    `ops/kiln.toml` has 4 problems

    error: `region` is `Frankfurt`
     --> ops/kiln.toml:2:10
      |
    2 | region = "Frankfurt"
      |          ^^^^^^^^^^^ expected an AWS region's code such as eu-central-1

    error: runner 2.100.0 can't register any more
     --> ops/kiln.toml:8:11
      |
    8 | version = "2.100.0"
      |           ^^^^^^^^^ expected 2.329.0 or newer
      |
      = help: GitHub refuses older ones; https://github.com/actions/runner/releases shows the newest

    error: fleet `linux` runs on aarch64, for which no runner is pinned
      --> ops/kiln.toml:11:8
       |
     9 | sha256 = { x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32" }
       |          ------------------------------------------------------------------------------- expected a digest for aarch64 in here
    10 |
    11 | [fleet.linux]
       |        ^^^^^
       |
       = help: add `aarch64 = "…"`: the SHA-256 of actions-runner-linux-arm64-VERSION.tar.gz on the release's page

    error: `min` is 9, more than `max`
      --> ops/kiln.toml:13:7
       |
    13 | min = 9
       |       ^ expected at most 4
    14 | max = 4
       |       - `max`
    "#);
}

#[test]
fn colours_are_for_those_who_ask() {
    let wrong = Config::from_toml("kiln.toml", "").unwrap_err();
    assert!(wrong.render(true).contains('\u{1b}'));
    assert!(!wrong.render(false).contains('\u{1b}') && !wrong.to_string().contains('\u{1b}'));
}

#[test]
fn a_file_that_is_no_toml_shows_some_of_its_mistakes() {
    let text = "?\n".repeat(1000);
    let wrong = error(&text);
    assert!(wrong.matches("error: ").count() == 20 && wrong.contains("\n\nand "), "{wrong}");
}

/// In a pipeline's log a secret is there for good.
#[test]
fn a_secret_in_the_file_is_not_printed() {
    let key = with([("client_id", "private_key = \"-----BEGIN RSA PRIVATE KEY-----\\nMIIE\"\nclient_id")]);
    let url = with([("[runner]", "[github]\nurl = \"https://me:MIIE@ghes.example\"\n[runner]")]);
    for text in [key, url] {
        let wrong = Config::from_toml("kiln.toml", &text).unwrap_err();
        assert!(!format!("{wrong} {}", wrong.render(true)).contains("MIIE"), "{wrong}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,64}") {
        show(&text)?;
    }

    /// Pieces of a file, in any order.
    #[test]
    fn no_document_makes_it_panic(lines in proptest::collection::vec(line(), 0..24)) {
        show(&lines.join("\n"))?;
    }

    #[test]
    fn no_edit_makes_it_panic(at in 0..VALID.len(), cut in 0..8_usize, junk in "\\PC{0,8}") {
        let end = (at + cut).min(VALID.len());
        show(&format!("{}{junk}{}", &VALID[..at], &VALID[end..]))?;
    }
}

fn show(text: &str) -> Result<(), proptest::test_runner::TestCaseError> {
    if let Err(error) = Config::from_toml("kiln.toml", text) {
        proptest::prop_assert!(error.render(false).contains("kiln.toml:"), "{}", error);
        proptest::prop_assert!(!error.render(true).is_empty());
    }
    Ok(())
}

fn line() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let keys = "organization|region|app|client_id|app_id|installation_id|key_store|github|url|api_url|runner|version|sha256|\
                x86_64|release_url|fleet|linux|labels|runner_group|registration|image|base|architecture|instance_types|min|\
                max|network|vpc|subnets|termination_heartbeat_timeout_secs|drain_timeout_secs|é|\"\"|fleet\\.a";
    let values = "1|-1|0x7f|99999999999999999999999999|1\\.5|nan|true|1979-05-27|\"\"|\"é\"|\"acme\"|\"kms\"|\"m6g\\.x\"|\
                  \"https://x\"|\"create-vpc\"|\\[\\]|\\[\"a\",\"A\"\\]|\\[1,\\[\\]\\]|\\{\\}|\\{ vpc = \"vpc-1\" \\}|\
                  \\{ a = \\{ b = 1 \\} \\}";
    let regex = |pattern: String| proptest::string::string_regex(&pattern).unwrap();
    prop_oneof![
        3 => regex(format!("({keys}) = ({values})")),
        1 => regex(format!("\\[(fleet\\.)?({keys})\\]")),
        1 => regex(format!("\\[\\[({keys})\\]\\]")),
    ]
}

#[test]
fn what_a_life_is_bound_by_is_read_or_left_to_its_default() {
    let config = Config::from_toml("kiln.toml", &fleet("")).unwrap();
    let fleet_of = |config: &Config| config.fleets.values().next().unwrap().clone();
    let plain = fleet_of(&config);
    assert_eq!((plain.failed_boot_grace_secs, plain.retirement), (300, Retirement::default()));
    assert_eq!(plain.job_metadata_access, MetadataAccess::Blocked);
    let text = "failed_boot_grace_secs = 0\nmax_age_secs = 604800\nidle_limit_secs = 1800\njob_metadata_access = \"allowed\"\nwait_for_docker = true\n\
                environment = { https_proxy = \"http://proxy:3128\" }";
    let config = Config::from_toml("kiln.toml", &fleet(text)).unwrap();
    let told = config.boot_config(&fleet_of(&config));
    assert_eq!(told.lifecycle.unwrap().failed_boot_grace_secs, 0);
    assert_eq!(told.retirement, Some(Retirement { max_age_secs: Some(604_800), idle_limit_secs: Some(1800) }));
    assert_eq!(told.job_metadata_access, MetadataAccess::Allowed);
    assert!(told.wait_for_docker);
    assert_eq!(told.environment["https_proxy"], "http://proxy:3128");
    let text = "registration = \"ephemeral\"\nlabels = [\"x\"]\njob_docker_access = \"blocked\"";
    let config = Config::from_toml("kiln.toml", &fleet(text)).unwrap();
    let told = config.boot_config(&fleet_of(&config));
    assert_eq!(told.job_docker_access, DockerAccess::Blocked);
}

#[test]
fn what_would_not_do_is_told() {
    for (text, said) in [
        ("job_metadata_access = \"off\"", "expected \"blocked\" or \"allowed\""),
        ("job_docker_access = \"blocked\"\nwait_for_docker = true", "jobs wait for docker, which they may not use"),
        ("canary_check = \" \"", "the check is empty"),
        ("job_docker_access = \"none\"", "expected \"allowed\" or \"blocked\""),
        ("environment = { \"2x\" = \"y\" }", "`2x` is no variable's name"),
        ("environment = { \"a b\" = \"y\" }", "`a b` is no variable's name"),
        ("environment = { ACTIONS_RUNNER_INPUT_TOKEN = \"y\" }", "belongs to the runner or to Kiln"),
        ("environment = { A = \"y\\nB=z\" }", "the value of `A` has a line break"),
        ("failed_boot_grace_secs = 541", "`failed_boot_grace_secs` is 541"),
    ] {
        let told = error(&fleet(text));
        assert!(told.contains(said), "{told}");
    }
}

#[test]
fn builds_of_node_are_pinned_by_major_release() {
    let node = |major: &str, version: &str| {
        format!("{VALID}[runner.node.{major}]\nversion = \"{version}\"\nsha256 = \"{DIGEST}\"\n")
    };
    let config = config(&node("24", "24.19.0"));
    let (major, pin) = config.runner.node.first_key_value().unwrap();
    assert_eq!((major.0, pin.path().as_str()), (24, "v24.19.0/node-v24.19.0-linux-x64-glibc-217.tar.gz"));
    assert_eq!(config.runner.node_url.as_str(), "https://unofficial-builds.nodejs.org/download/release");
    insta::assert_snapshot!(error(&node("20", "24.19.0")), @r#"
    error: Node 24.19.0 would stand in for the runner's Node 20
      --> kiln.toml:17:11
       |
    16 | [runner.node.20]
       |              -- the runner's
    17 | version = "24.19.0"
       |           ^^^^^^^^^ expected a release of Node 20
    "#);
    insta::assert_snapshot!(error(&node("lts", "v24.19.0")), @r#"
    error: `lts` is no major release of Node
      --> kiln.toml:16:14
       |
    16 | [runner.node.lts]
       |              ^^^ expected a number such as 24, as in the runner's externals/node24
    "#);
}

#[test]
fn images_go_elsewhere_once() {
    let image = |more: &str| format!("{VALID}[image_defaults]\n{more}\n");
    let key = |key: &str| format!("kms_key = \"arn:aws:kms:{key}\"");
    let all = format!(
        "copy_to = [\"eu-west-1\"]\nshare_with = [\"123456789012\"]\n{}",
        key("eu-central-1:111122223333:key/mrk-12")
    );
    let config = config(&image(&all));
    let there = &config.image_defaults.copy_to[0];
    assert_eq!((there.as_str(), config.image_defaults.share_with[0].as_str()), ("eu-west-1", "123456789012"));
    let replica = config.image_defaults.kms_key.unwrap().in_region(there);
    assert_eq!(replica.as_str(), "arn:aws:kms:eu-west-1:111122223333:key/mrk-12");
    for (more, said) in [
        ("copy_to = [\"eu-central-1\"]", "`copy_to` has eu-central-1, where images are baked"),
        ("copy_to = [\"eu-west-1\", \"eu-west-1\"]", "`eu-west-1` is in `copy_to` twice"),
        ("share_with = [\"12345\"]", "an entry of `share_with` is `12345`"),
        ("share_with = [\"123456789012\"]", "expected `kms_key` beside `share_with`"),
        (key("eu-west-1:111122223333:key/12").as_str(), "`kms_key` is a key of eu-west-1"),
        (key("eu-central-1:111122223333:alias/12").as_str(), "expected a KMS key's ARN such as"),
        (
            format!("copy_to = [\"eu-west-1\"]\n{}", key("eu-central-1:111122223333:key/12")).as_str(),
            "expected a multi-Region key, key/mrk-…",
        ),
        ("owner = \"acme\"", "`owner` is `acme`"),
        ("instance_types = [\"m5.large\", \"m5.large\"]", "`m5.large` is in `instance_types` twice"),
        ("network = { vpc = \"vpc-1\", subnet = \"subnet-0123456789abcdef0\" }", "`vpc` is `vpc-1`"),
        ("network = { vpc = \"vpc-0123456789abcdef0\" }", "`subnet`"),
    ] {
        let told = error(&image(more));
        assert!(told.contains(said), "{more}: {told}");
    }
}

#[test]
fn what_only_aws_is_told_has_bounds_of_its_own() {
    insta::assert_snapshot!(error(&fleet("volume = { gib = 30, iops = 16000 }")), @r#"
    error: a gp3 volume of 30 GiB can't have 16000 IOPS
      --> kiln.toml:16:29
       |
    16 | volume = { gib = 30, iops = 16000 }
       |                             ^^^^^ expected at most 15000
       |
       = help: or make `gib` at least 32
    "#);
    insta::assert_snapshot!(error(&fleet("volume = { iops = 4000, throughput_mibps = 1001 }")), @r#"
    error: 1001 MiB/s are too much for 4000 IOPS
      --> kiln.toml:16:44
       |
    16 | volume = { iops = 4000, throughput_mibps = 1001 }
       |                                            ^^^^ expected at most 1000
       |
       = help: or make `iops` at least 4004
    "#);
    insta::assert_snapshot!(error(&fleet("spot = { on_demand_base = 4 }")), @r#"
    error: `on_demand_base` is 4, which leaves no instance to be spot
      --> kiln.toml:16:27
       |
    14 | max = 4
       |       - `max`
    15 | network = "create-vpc"
    16 | spot = { on_demand_base = 4 }
       |                           ^ expected less than 4
    "#);
    insta::assert_snapshot!(error(&fleet("egress_ports = [22, 80, 8080, 8443]\nenvironment = { http_proxy = \"http://proxy:3128\" }")), @r#"
    error: runners reach 5 ports beside 443: 22, 80, 3128, 8080, 8443
      --> kiln.toml:16:16
       |
    16 | egress_ports = [22, 80, 8080, 8443]
       |                ^^^^^^^^^^^^^^^^^^^^ expected at most 4
       |
       = help: GitHub's own port and those of the proxies in `environment` count too
    "#);
    insta::assert_snapshot!(error(&with([("region", "alarm_topic = \"arn:aws:sns:us-east-1:123456789012:alarms\"\nregion")])), @r#"
    error: `alarm_topic` is `arn:aws:sns:us-east-1:123456789012:alarms`
     --> kiln.toml:2:15
      |
    2 | alarm_topic = "arn:aws:sns:us-east-1:123456789012:alarms"
      |               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected an ARN such as arn:aws:sns:eu-central-1:123456789012:NAME
    "#);
    for (more, message) in [
        ("volume = { gib = 8 }", "expected 30 to 65536"),
        ("volume = { iops = 100 }", "expected 3000 to 80000"),
        ("volume = { throughput_mibps = 2001 }", "expected 125 to 2000"),
        ("volume = { size = 8 }", "unknown key `size`"),
        ("spot = { on_demand_percent = 100 }", "expected 0 to 99"),
        ("spot = { strategy = \"lowest-price\" }", "expected \"price-capacity-optimized\" or"),
        ("spot = true", "`spot` is a boolean"),
        ("egress_ports = [0]", "expected 1 to 65535"),
        ("egress_ports = [70000]", "expected 1 to 65535"),
        ("session_manager = \"yes\"", "expected a boolean"),
    ] {
        let wrong = error(&fleet(more));
        assert!(wrong.contains(message), "{more}:\n{wrong}");
    }
    let at_the_edge = config(&fleet("volume = { gib = 160, iops = 80000, throughput_mibps = 2000 }\nspot = {}"));
    let fleet = at_the_edge.fleets.values().next().unwrap();
    assert_eq!((fleet.volume.gib, fleet.spot.unwrap().on_demand_base), (160, 0));
}

#[test]
fn tags_are_ones_that_aws_takes() {
    let tags = |lines: &str| with([("[runner]", &format!("[tags]\n{lines}\n[runner]"))]);
    let many: String = (0..11).map(|index| format!("t{index:02} = \"x\"\n")).collect();
    for (lines, message) in [
        ("\"aws:x\" = \"y\"", "the tag `aws:x` is not yours to set"),
        ("\"kiln:x\" = \"y\"", "the tag `kiln:x` is not yours to set"),
        ("Name = \"y\"", "the tag `Name` is not yours to set"),
        ("\"\" = \"y\"", "`` is no tag's key"),
        ("\"a*b\" = \"y\"", "`a*b` is no tag's key"),
        ("a = \"y\\nz\"", "the value of the tag `a` is none that Kiln can set"),
        ("a = 1", "is an integer"),
        (many.as_str(), "[tags] has 11 tags"),
    ] {
        let wrong = error(&tags(lines));
        assert!(wrong.contains(message), "{lines}:\n{wrong}");
    }
    let taken = config(&tags("\"cost-center\" = \"CI / all teams\"")).tags;
    assert_eq!(taken["cost-center"], "CI / all teams");
}

#[test]
fn runners_reach_github_where_it_is() {
    let ports = |github: &str| {
        let config = config(&with([("[runner]", &format!("[github]\n{github}\n[runner]"))]));
        config.fleets.values().next().unwrap().egress_ports.iter().copied().collect::<Vec<u16>>()
    };
    assert_eq!(ports(""), [0; 0]);
    assert_eq!(ports("url = \"https://ghes.example:8443\""), [8443]);
    assert_eq!(ports("url = \"https://ghes.example\"\napi_url = \"https://api.example:9443/v3\""), [9443]);
}

/// Rights go by the beginnings of names, in an account that several organizations share.
#[test]
fn no_organizations_names_begin_as_anothers_do() {
    let parts = ["acme", "fleet", "corp", "bake", "network", "pipeline"];
    let mut logins: Vec<String> = parts.map(str::to_owned).to_vec();
    for _ in 0..2 {
        let longer = logins.iter().flat_map(|login| parts.map(|part| format!("{login}-{part}"))).collect::<Vec<_>>();
        logins.extend(longer);
    }
    logins.sort();
    logins.dedup();
    let configs: Vec<Config> =
        logins.iter().map(|login| config(&with([("\"acme\"", &format!("\"{login}\""))]))).collect();
    let names = |of: &Config| {
        let fleets =
            ["linux", "fleet", "fleet-x", "network", "bake"].map(|name| of.fleet_stack(&name.parse().unwrap()));
        fleets.into_iter().chain([of.bake_stack(), of.network_stack(), of.bake_role()]).collect::<Vec<_>>()
    };
    let all: Vec<(usize, Vec<String>)> = configs.iter().map(names).enumerate().collect();
    for (mine, config) in configs.iter().enumerate() {
        let fleets = config.fleet_stack_prefix();
        let exact = [config.bake_stack(), config.network_stack(), config.bake_role()];
        for (_, theirs) in all.iter().filter(|(other, _)| *other != mine) {
            let taken = theirs.iter().find(|name| name.starts_with(&fleets) || exact.contains(name));
            assert_eq!(taken, None, "of {}", config.organization);
        }
    }
    let prefix = |login: &str| config(&with([("\"acme\"", &format!("\"{login}\""))])).prefix();
    assert_eq!(
        ["Acme-Corp", "acme-fleet-1", "fleet", "fleets", "acme-image"].map(prefix),
        ["kiln-acme-corp", "kiln-acme--fleet-1", "kiln-fleet", "kiln-fleets", "kiln-acme--image"]
    );
}

#[test]
fn the_role_for_stacks_is_a_role() {
    let role = "arn:aws:iam::123456789012:role/kiln-acme-cloudformation";
    let text = |arn: &str| format!("cloudformation_role = \"{arn}\"\n{VALID}");
    assert_eq!(config(&text(role)).cloudformation_role.as_deref(), Some(role));
    assert!(
        error(&text("arn:aws:iam::123456789012:policy/x"))
            .contains("expected an ARN such as arn:aws:iam::123456789012:role/")
    );
}

/// A fleet with an image of these lines.
fn with_image(lines: &str) -> String {
    fleet(&format!("image = \"it\"\n[image.it]\n{lines}"))
}

#[test]
fn a_fleet_without_an_image_has_one_of_its_types_architecture() {
    let named = |text: &str| config(text).fleets.values().next().unwrap().image.to_string();
    assert_eq!(named(VALID), "al2023-x86-64");
    assert_eq!(named(&with([("sha256 = { x86_64", "sha256 = { aarch64"), ("m6i", "m6g")])), "al2023-aarch64");
    let of_table =
        config(&with_image("base = \"debian-12\"\nvolume_gib = 40\npackages = [\"jq\", \"g++=4:12.2.0-3\"]"));
    let fleet = of_table.fleets.values().next().unwrap();
    let image = of_table.image_of(fleet);
    assert_eq!((image.name.as_str(), image.system.name(), fleet.volume.gib), ("it", "debian-12", 40));
    assert_eq!(image.packages, ["jq", "g++=4:12.2.0-3"]);
    assert_eq!(of_table.image_name(&image.name), "kiln-acme-image-it");
    // What no fleet runs is checked, and not baked.
    assert_eq!(config(&format!("{VALID}[image.unused]\n")).images.len(), 1);
}

#[test]
fn what_an_image_can_have_wrong_is_shown_at_its_place() {
    let digest = "0".repeat(64);
    for (lines, place, said) in [
        ("base = \"ubunto-24.04\"", "18:8", "did you mean \"ubuntu-24.04\"?"),
        ("base = \"ami-0123456789abcdef0\"", "18:8", "expected `family` next to it"),
        ("base = \"debian-12\"\nfamily = \"debian-12\"", "19:10", "`family` is for an AMI of your own"),
        ("base = \"/a//b\"\nfamily = \"debian-12\"", "18:8", "`base` is `/a//b`"),
        ("packages = [\"jq\", \"a b\"]", "18:19", "an entry of `packages` is `a b`"),
        ("packages = [\"$(id)\"]", "18:13", "expected a package's name"),
        ("packages = [\"jq\", \"jq\"]", "18:19", "`jq` is in `packages` twice"),
        ("scripts = [\"/etc/passwd\"]", "18:12", "expected a path relative to the folder of kiln.toml"),
        ("scripts = [\"a/../../b\"]", "18:12", "without `..`"),
        ("tests = [\"\"]", "18:10", "an entry of `tests` is empty"),
        ("ca_certificates = [\"~/ca.pem\"]", "18:20", "expected a path relative"),
        ("files = [{ source = \"a\", destination = \"etc/a\" }]", "18:40", "expected the absolute path"),
        ("files = [{ source = \"a\", destination = \"/etc/kiln/a\" }]", "18:40", "outside of /etc/kiln"),
        ("files = [{ source = \"a\", destination = \"/a\", mode = \"4755\" }]", "18:53", "expected three octal digits"),
        ("files = [{ destination = \"/a\" }]", "18:10", "`source` is missing"),
        (
            "components = [\"arn:aws:imagebuilder:eu-central-1:aws:component/x/1.x.x\"]",
            "18:15",
            "component/NAME/1.2.3/1",
        ),
        ("containers = [\"alpine:3\"]", "18:15", "@sha256:DIGEST"),
        ("volume_gib = 8", "18:14", "expected 30 to 1024"),
        ("toolset = \"full\"", "18:11", "expected \"minimal\" or \"standard\""),
        ("packages = \"jq\"", "18:12", "expected an array"),
    ] {
        let wrong = error(&with_image(lines));
        assert!(wrong.contains(&format!("kiln.toml:{place}\n")), "{lines}: not at {place}: {wrong}");
        assert!(wrong.contains(said), "{lines}: no `{said}` in {wrong}");
        assert_eq!(wrong.matches("error: ").count(), 1, "{lines}: {wrong}");
    }
    let fine = format!(
        "base = \"/golden/ami\"\nfamily = \"ubuntu-24.04\"\ntoolset = \"standard\"\nscripts = [\"image/a b.sh\"]\n\
         files = [{{ source = \"a\", destination = \"/etc/app/a.conf\", mode = \"600\" }}]\n\
         components = [\"image/own.yml\", \"arn:aws:imagebuilder:eu-central-1:aws:component/x/1.0.1/1\"]\n\
         containers = [\"ghcr.io/a/b:c@sha256:{digest}\"]"
    );
    let image = config(&with_image(&fine)).images.into_values().next().unwrap();
    assert_eq!((image.files[0].mode, image.components.len()), (0o600, 2));
}

#[test]
fn old_keys_and_names_that_are_none_lead_to_the_image_s_table() {
    for (text, said) in [
        (fleet("base_image = \"amazon-linux-2\""), "it is `base` of a table [image.NAME]"),
        (fleet("architecture = \"aarch64\""), "it is `architecture` of a table [image.NAME]"),
        (fleet("image = \"tools\""), "expected the name of a table [image.NAME], of which there is none"),
        (fleet("image = \"tool\"\n[image.tools]"), "expected \"tools\""),
        (fleet("[image]\nbase = \"debian-12\""), "an image has a name: write [image.tools]"),
        (fleet("[image.al2023-x86-64]"), "what Kiln calls the image of fleets without `image`"),
        (fleet("volume = { gib = 35 }\nimage = \"it\"\n[image.it]\nvolume_gib = 40"), "expected at least 40"),
    ] {
        let wrong = error(&text);
        assert!(wrong.contains(said), "{text}: no `{said}` in {wrong}");
    }
}
