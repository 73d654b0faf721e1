//! What people really have in a kiln.toml: wrong encodings, secrets, huge files, and settings that only another party
//! would have refused.

#![cfg(feature = "config")]

use kiln_config::boot::BootConfig;
use kiln_config::config::{Config, NotText, decode, partition};
use kiln_config::environment::{Refused, refused};
use proptest::prelude::*;

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

fn config(text: &str) -> Config {
    Config::from_toml("kiln.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn error(text: &str) -> String {
    match Config::from_toml("kiln.toml", text) {
        Ok(_) => panic!("it is taken:\n{text}"),
        Err(error) => format!("{error}\n{error:?}\n{:?}", error.problems().collect::<Vec<_>>()),
    }
}

/// [`VALID`] with one piece replaced.
fn with(piece: &str, replacement: &str) -> String {
    assert_eq!(VALID.matches(piece).count(), 1, "{piece}");
    VALID.replace(piece, replacement)
}

/// With more lines in the fleet's table.
fn fleet(more: &str) -> String {
    format!("{VALID}{more}\n")
}

#[track_caller]
fn refuses(table: &[(String, &str)]) {
    for (text, said) in table {
        let error = error(text);
        assert!(error.contains(said), "expected `{said}`:\n{error}");
    }
}

#[test]
fn numbers_have_limits_that_leave_room_for_arithmetic() {
    refuses(&[
        (with("max = 4", "max = 4294967295"), "expected 1 to 10000"),
        (with("min = 1", "min = 10001"), "expected 0 to 10000"),
        (fleet("max_age_secs = 4294967295"), "expected 3600 to 31536000"),
        (fleet("idle_limit_secs = 4294967295"), "expected 60 to 31536000"),
        (fleet("spot = { on_demand_base = 4294967295 }"), "expected 0 to 10000"),
        (with("client_id = \"Iv23liEXAMPLE\"", "app_id = 9007199254740992"), "expected 1 to 9007199254740991"),
        (with("[app]", "[app]\ninstallation_id = 9223372036854775807"), "expected 1 to 9007199254740991"),
    ]);
    for key in [
        "min",
        "max",
        "termination_heartbeat_timeout_secs",
        "drain_timeout_secs",
        "failed_boot_grace_secs",
        "max_age_secs",
    ] {
        for number in ["0", "1", "2147483648", "4294967295", "9223372036854775807", "-9223372036854775808"] {
            let text = VALID.replace("min = 1\n", "").replace("max = 4\n", "");
            let others = [("min", "0"), ("max", "10000")].into_iter().filter(|(other, _)| *other != key);
            let others: String = others.map(|(other, number)| format!("{other} = {number}\n")).collect();
            // No panic is all that is asked.
            let _ = Config::from_toml("kiln.toml", &format!("{text}{others}{key} = {number}\n"));
        }
    }
}

#[test]
fn what_cloudformation_gives_back_changed_is_not_sent() {
    for (key, value) in [("managed-by", "Jürgen"), ("für", "ci"), ("a", "日本"), ("a", "e\u{301}")] {
        let said = error(&format!("{VALID}[tags]\n\"{key}\" = \"{value}\"\n"));
        assert!(said.contains("CloudFormation gives back"), "{said}");
    }
    let text =
        fleet("labels = [\"größe=xl 🚀\"]\nrunner_group = \"Läufer\"\nenvironment = { GREETING = \"Grüße 日本\" }");
    let config = config(&text);
    let fleet = config.fleets.values().next().unwrap();
    let boot = config.boot_config(fleet);
    let sent = boot.to_json().unwrap();
    assert!(sent.is_ascii(), "{sent}");
    assert_eq!(BootConfig::from_json(&sent).unwrap(), boot);
}

#[test]
fn labels_are_what_github_takes() {
    let labels = "labels = [\"platform:linux/amd64\", \"env=prod\", \"two words\", \"a'b\\\"c\"]";
    assert_eq!(config(&fleet(labels)).fleets.values().next().unwrap().labels.len(), 4);
    let many = |count: usize| {
        let list: Vec<String> = (0..count).map(|number| format!("\"l{number}\"")).collect();
        fleet(&format!("labels = [{}]", list.join(", ")))
    };
    config(&many(97));
    refuses(&[
        (many(98), "expected at most 97"),
        (fleet("labels = [\"a,b\"]"), "no comma"),
        (fleet("labels = [\" a\"]"), "take out the blanks"),
        (fleet("labels = [\"a\\tb\"]"), "a label"),
        (fleet(&format!("labels = [\"{}\"]", "a".repeat(257))), "at most 256"),
        (fleet("labels = [\"\"]"), "an entry of `labels` is empty"),
        (fleet("labels = [\"Self-Hosted\"]"), "has the label `Self-Hosted` already"),
        (fleet("labels = [\"linux\"]"), "already"),
        (fleet("labels = [\"x64\"]"), "already"),
        (fleet("labels = [\"ARM64\"]"), "another architecture"),
        (fleet("labels = [\"größe\", \"GRÖSSE\", \"GRÖßE\"]"), "twice"),
    ]);
}

#[test]
fn variables_that_load_code_and_the_runners_own_are_refused() {
    let loads = ["LD_PRELOAD", "ld_library_path", "LD_AUDIT", "GLIBC_TUNABLES", "GCONV_PATH", "BASH_ENV", "SHELLOPTS"];
    let more = ["DOTNET_STARTUP_HOOKS", "CORECLR_ENABLE_PROFILING", "LOCPATH"];
    for name in loads.into_iter().chain(more) {
        assert_eq!(refused(name), Some(Refused::LoadsCode), "{name}");
        let said = error(&fleet(&format!("environment = {{ {name} = \"/tmp/hidden-value\" }}")));
        assert!(said.contains("what code programs load") && !said.contains("hidden-value"), "{said}");
    }
    for name in
        ["ACTIONS_RUNNER_HOOK_JOB_STARTED", "actions_runner_input_token", "GITHUB_TOKEN", "RUNNER_NAME", "KILN_X"]
    {
        assert_eq!(refused(name), Some(Refused::Reserved), "{name}");
    }
    for name in ["", "1A", "a-b", "a b", "ä", "a=b", "a\0"] {
        assert_eq!(refused(name), Some(Refused::Malformed), "{name:?}");
    }
    refuses(&[(fleet("environment = { \"\" = \"x\" }"), "no variable's name")]);
    for name in ["PATH", "ENV", "NODE_OPTIONS", "https_proxy", "NO_PROXY", "MALLOC_ARENA_MAX", "_x"] {
        assert_eq!(refused(name), None, "{name}");
    }
}

#[test]
fn a_proxy_without_a_scheme_is_http_and_its_port_is_reached() {
    let of = |environment: &str| {
        let config = config(&fleet(&format!("environment = {environment}")));
        let fleet = config.fleets.values().next().unwrap().clone();
        (fleet.environment, fleet.egress_ports.into_iter().collect::<Vec<_>>())
    };
    let (variables, ports) =
        of("{ https_proxy = \"proxy.corp:3128\", NO_PROXY = \"a.corp:9,.b\", HTTP_PROXY = \"10.0.0.5\" }");
    assert_eq!(variables["https_proxy"], "http://proxy.corp:3128");
    assert_eq!(variables["HTTP_PROXY"], "http://10.0.0.5");
    assert_eq!(variables["NO_PROXY"], "a.corp:9,.b");
    assert_eq!(ports, [80, 3128]);
    assert_eq!(of("{ all_proxy = \"socks5://proxy.corp:1080\", http_proxy = \"\" }").1, [1080]);
    refuses(&[
        (fleet("environment = { https_proxy = \"socks5://proxy.corp\" }"), "with its port"),
        (fleet("environment = { https_proxy = \"not a proxy\" }"), "with its port"),
        (fleet("environment = { https_proxy = \"http://\" }"), "with its port"),
    ]);
}

/// A token of each kind, put together here so that no scanner takes this file for a leak.
fn secrets() -> Vec<(&'static str, String)> {
    let token = |begin: &str| format!("{begin}{}", "Ab3dE6gH9".repeat(5));
    let access_key = format!("AK{}IOSFODNN7EXAMPLE", "IA");
    let half = format!("wJalrXUtnFEMI{}K7MDENG/bPxRfiCYEXAMPLEKEY", '/');
    vec![
        ("ghp", token("ghp_")),
        ("gho", token("gho_")),
        ("ghu", token("ghu_")),
        ("ghs", token("ghs_")),
        ("ghr", token("ghr_")),
        ("fine-grained", token("github_pat_")),
        ("pem", format!("-----BEGIN RSA PRIVATE {}-----\\nMIIEsecretsecret", "KEY")),
        ("base64 of pem", format!("LS0tLS1CRUdJTi{}", "BSU0EgUFJJVkFURSBLRVk".repeat(3))),
        ("aws", format!("{access_key} {half}")),
        ("userinfo", "https://me:hunter2hunter2@example.com/x".to_owned()),
    ]
}

#[test]
fn a_secret_is_named_and_never_shown_wherever_it_is_pasted() {
    for (what, secret) in secrets() {
        let places = [
            fleet(&format!("environment = {{ X = \"{secret}\" }}")),
            fleet(&format!("canary_check = \"curl {secret}\"")),
            fleet(&format!("# {secret}")),
            with("\"Iv23liEXAMPLE\"", &format!("\"{secret}\"")),
            with("\"acme\"", &format!("\"{secret}\"")),
            format!("{VALID}[tags]\nowner = \"{secret}\"\n"),
            format!("{VALID}[app2]\nx = \"{secret}\"\n"),
            // Not even TOML.
            fleet(&format!("labels = [\"{secret}\"")),
            fleet(&format!("nonsense {secret}")),
        ];
        for text in places {
            let said = error(&text);
            assert!(said.contains("does not belong into this file"), "{what}: {said}");
            for piece in ["Ab3dE6gH9", "MIIEsecret", "BSU0EgUF", "wJalr", "hunter2"] {
                assert!(!said.contains(piece), "{what}: {said}");
            }
        }
    }
}

#[test]
fn a_secret_that_escapes_hide_is_found_too() {
    let said = error(&fleet("environment = { X = \"\\u0067hp_Ab3dE6gH9Ab3dE6gH9Ab3dE6gH9\" }"));
    assert!(said.contains("a GitHub token does not belong"), "{said}");
    assert!(!said.contains("Ab3dE6gH9"), "{said}");
}

#[test]
fn a_client_secret_and_a_password_are_not_shown() {
    let hex = "0123456789abcdef0123456789abcdef01234567";
    for key in ["client_id", "client_secret", "app_id"] {
        let said = error(&with("client_id = \"Iv23liEXAMPLE\"", &format!("{key} = \"{hex}\"")));
        assert!(said.contains("client secret") && !said.contains(hex), "{said}");
    }
    let others = [
        "webhook_secret = \"hunter2\"",
        "webhook_secret = \"\"\"\nhunter2\n\"\"\"",
        "password = \"hunter2\", nonsense = 1",
    ];
    for line in others {
        let text = if line.contains("nonsense") {
            with("[app]\nclient_id = \"Iv23liEXAMPLE\"", &format!("app = {{ client_id = \"Iv1\", {line} }}"))
        } else {
            with("[app]", &format!("[app]\n{line}"))
        };
        let said = error(&text);
        assert!(said.contains("unknown key") && !said.contains("hunter2"), "{line}: {said}");
    }
    let proxies = ["me:hunter2@proxy:3128", "http://me:hunter2@proxy:3128"];
    for proxy in proxies {
        let said = error(&fleet(&format!("environment = {{ https_proxy = \"{proxy}\" }}")));
        assert!(said.contains("password") && !said.contains("hunter2"), "{said}");
    }
    let said = error(&fleet("environment = { AWS_SECRET_ACCESS_KEY = \"hunter2\" }"));
    assert!(said.contains("is a secret") && !said.contains("hunter2"), "{said}");
}

#[test]
fn what_only_looks_like_a_secret_is_taken() {
    let fine = [
        "canary_check = \"./check.sh ghp_ AKIAIOSFODNN7EXAMPLE\"",
        "canary_check = \"curl https://example.com:8443/a@b\"",
        "canary_check = \"git clone ssh://git@github.com/x\"",
        "environment = { SHA = \"0123456789abcdef0123456789abcdef01234567\" }",
        "# -----BEGIN CERTIFICATE-----",
    ];
    for line in fine {
        config(&fleet(line));
    }
}

#[test]
fn what_is_valid_but_hardly_meant_is_noticed() {
    let notices = |text: &str| {
        let list = config(text).notices.into_iter().map(|notice| notice.to_string());
        list.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(notices(VALID), "");
    assert!(notices(&with("min = 1", "min = 0")).contains("line 13: fleet `linux` has `min = 0`"));
    assert!(notices(&with("m6i.large", "g5.xlarge")).contains("no driver for the accelerator of g5.xlarge"));
    let secret = notices(&fleet("environment = { NPM_TOKEN = \"hunter2\" }"));
    assert!(secret.contains("`NPM_TOKEN` has the name of a secret") && !secret.contains("hunter2"), "{secret}");
    let twin = VALID.split("[fleet.linux]").nth(1).unwrap();
    let two = notices(&format!("{VALID}labels = [\"A\"]\n[fleet.twin]{twin}labels = [\"a\"]\n"));
    assert!(two.contains("fleets `linux` and `twin` have the same labels"), "{two}");
    assert!(notices(&with("eu-central-1", "eu-central-9")).contains("is eu-central-1 meant?"));
}

#[test]
fn regions_arns_and_copies_are_of_one_partition() {
    for (region, name) in [
        ("eu-central-1", "aws"),
        ("us-gov-west-1", "aws-us-gov"),
        ("cn-north-1", "aws-cn"),
        ("eusc-de-east-1", "aws-eusc"),
        ("us-isob-east-1", "aws-iso-b"),
        ("us-iso-east-1", "aws-iso"),
    ] {
        assert_eq!(partition(&region.parse().unwrap()), Some(name));
        let boundary = format!("permissions_boundary = \"arn:{name}:iam::123456789012:policy/a/b\"\nregion");
        config(&with("region", &boundary).replace("eu-central-1", region));
    }
    let arn = |line: &str| with("region", &format!("{line}\nregion"));
    config(&arn("permissions_boundary = \"arn:aws:iam::aws:policy/PowerUserAccess\""));
    let image = |line: &str| format!("{VALID}[image_defaults]\n{line}\n");
    refuses(&[
        (arn("permissions_boundary = \"arn:aws-cn:iam::123456789012:policy/x\""), "arn:aws:iam::"),
        (arn("alarm_topic = \"arn:awsome:sns:eu-central-1:123456789012:x\""), "arn:aws:sns:eu-central-1"),
        (arn("alarm_topic = \"arn:aws:sns:eu-central-1:aws:x\""), "expected an ARN"),
        (arn("alarm_topic = \"arn:aws:sns:eu-central-1:123456789012:zählen\""), "expected an ARN"),
        (
            with("eu-central-1", "us-gov-west-1")
                .replace("[app]", "permissions_boundary = \"arn:aws:iam::123456789012:policy/x\"\n[app]"),
            "arn:aws-us-gov:iam",
        ),
        (image("copy_to = [\"us-gov-west-1\"]"), "no image can be copied to us-gov-west-1"),
        (image("copy_to = [\"cn-north-1\"]"), "no image can be copied to cn-north-1"),
        (image("kms_key = \"arn:aws-cn:kms:eu-central-1:111122223333:key/1\""), "an ARN of the partition aws-cn"),
        (with("eu-central-1", "foo-bar-1"), "expected one of AWS's regions"),
    ]);
}

#[test]
fn githubs_addresses_are_githubs() {
    let github = |lines: &str| with("[runner]", &format!("[github]\n{lines}\n[runner]"));
    config(&github("url = \"https://ghes.corp\"\napi_url = \"https://ghes.corp/api/v3/\""));
    config(&github("url = \"https://ghes.corp\"\napi_url = \"https://proxy.corp/gh\""));
    config(&github("url = \"https://acme.ghe.com\"\napi_url = \"https://api.acme.ghe.com\""));
    refuses(&[
        (github("url = \"https://www.github.com\""), "expected https://github.com"),
        (github("url = \"https://ghes.corp\"\napi_url = \"https://ghes.corp\""), "expected https://ghes.corp/api/v3"),
        (
            github("url = \"https://acme.ghe.com\"\napi_url = \"https://acme.ghe.com/api/v3\""),
            "expected https://api.acme.ghe.com",
        ),
        (
            github("url = \"https://acme.ghe.com\"\napi_url = \"https://api.acme.ghe.com/api/v3\""),
            "expected https://api.acme.ghe.com",
        ),
        (
            github("url = \"https://github.com\"\napi_url = \"https://github.com/api/v3\""),
            "expected https://api.github.com",
        ),
        (github("url = \"https://api.acme.ghe.com\""), "expected GitHub's web address"),
        (github("url = \"https://a.corp/$(x)\""), "expected letters"),
        (with("[runner]\n", "[runner]\nnode_url = \"https://a.corp/it's\"\n"), "expected letters"),
    ]);
}

#[test]
fn slips_have_hints() {
    refuses(&[
        (with("\"acme\"", "\"https://github.com/acme\""), "write the login alone: \\\"acme\\\""),
        (with("\"acme\"", "\"https://github.com/orgs/acme/people\""), "write the login alone"),
        (with("\"acme\"", "\"acme/repository\""), "write the login alone"),
        (with("\"acme\"", "\"@acme\""), "write the login alone"),
        (with("\"acme\"", "\"acme \""), "take out the blanks"),
        (with("\"eu-central-1\"", "\"eu-central-1 \""), "take out the blanks"),
        (with("\"eu-central-1\"", "\"EU-Central-1\""), "write it in lower case: \\\"eu-central-1\\\""),
        (with("\"Iv23liEXAMPLE\"", "\"Iv23liEXAMPLE \""), "take out the blanks"),
        (with("\"acme\"", "\"\""), "`organization` is empty"),
        (with("\"acme\"", "\" \""), "`organization` is blank"),
        (with("\"m6i.large\"", "\"mac2.metal\""), "is for macOS"),
    ]);
    let one = error(&with("client_id = \"Iv23liEXAMPLE\"", "app_id = \"123456\""));
    assert!(one.contains("has a problem") && one.contains("`app_id` is a string"), "{one}");
}

#[test]
fn a_file_that_is_no_text_is_told_what_it_is() {
    let utf16 = |big: bool| {
        let units =
            VALID.encode_utf16().flat_map(move |unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() });
        units.collect::<Vec<u8>>()
    };
    for (bytes, wanted) in [
        (utf16(true), NotText::Utf16),
        (utf16(false), NotText::Utf16),
        ([vec![0xff, 0xfe], utf16(false)].concat(), NotText::Utf16),
        (b"organization = \"acme\"\n# J\xfcrgen\n".to_vec(), NotText::NotUtf8 { line: 2, byte: 0xfc }),
        (vec![b'#'; 10 << 20], NotText::TooLong),
    ] {
        assert_eq!(decode(bytes).unwrap_err(), wanted);
    }
    assert_eq!(decode(VALID.as_bytes().to_vec()).unwrap(), VALID);
    config(&format!("\u{feff}{}", VALID.replace('\n', "\r\n")));
    refuses(&[
        (VALID.replace('\n', "\r"), "`kiln.toml` has a problem"),
        (VALID.replace('\n', "\r"), "save it with line breaks of Unix"),
        ("#".repeat(2 << 20), "longer than"),
    ]);
}

#[test]
fn what_is_not_closed_is_named_once() {
    for text in [
        with("[\"m6i.large\"]", "[\"m6i.large\""),
        with("[\"m6i.large\"]", "[\n  \"m6i.large\", # ] no\n  'm5.large'"),
        fleet("labels = [[\"a\"]"),
        fleet("labels = ["),
        fleet("environment = { A = \"]\", B = [\n"),
        fleet("spot = {"),
        with("{ x86_64 = \"af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32\" }", "{ x86_64 = \"\""),
    ] {
        let said = error(&text);
        assert!(said.contains("is not closed") && said.contains("has a problem"), "{text}\n{said}");
    }
    for text in [fleet("labels = [\"a\\\"]\", 'b]', \"\"\"c]\n\"\"\", ]\nx = = 1"), fleet("labels = \"a")] {
        assert!(!error(&text).contains("is not closed"), "{text}");
    }
}

/// Not by the clock, which the machine's load moves: each of them would take minutes.
#[test]
fn a_file_of_errors_ends_soon_and_short() {
    for line in
        ["x = \n", "x = 1\n", "y = [\n", "[[x]]\n", "[fleet.x]\nmin = -1\n", "\"\\q\" = 1\n", "\u{1}\n", "= = =\n"]
    {
        let text = line.repeat(20_000);
        let error = Config::from_toml("kiln.toml", &text).unwrap_err();
        assert!(error.to_string().len() < 40_000, "{line}: {}", error.to_string().len());
        assert!(error.problems().count() <= 200, "{line}");
    }
    let unknown: String = (0..20_000).map(|number| format!("unknown_{number} = {number}\n")).collect();
    let error = Config::from_toml("kiln.toml", &unknown).unwrap_err();
    assert!(error.summary().contains("2000") && error.render(false).contains("more"), "{}", error.summary());
    for long in [format!("{} = 1\n", "k".repeat(1_000_000)), format!("organization = \"{}\"\n", "v".repeat(1_000_000))]
    {
        let said = Config::from_toml("kiln.toml", &long).unwrap_err().to_string();
        assert!(said.len() < 3000, "{}", said.len());
    }
}

proptest! {
    /// Neither a panic nor a secret, whatever stands around it.
    #[test]
    fn nothing_of_a_token_is_shown_whatever_stands_around_it(
        before in "[ -~\n\"'=#\\[\\]{}äé]{0,60}",
        after in "[ -~\n\"'=#\\[\\]{}äé]{0,60}",
        index in 0..10_usize,
    ) {
        let (_, secret) = &secrets()[index];
        let text = format!("{before} {secret} {after}");
        let said = match Config::from_toml("kiln.toml", &text) {
            Ok(config) => format!("{config:?}"),
            Err(error) => format!("{error}{:?}", error.problems().collect::<Vec<_>>()),
        };
        for piece in ["Ab3dE6gH9", "MIIEsecret", "BSU0EgUF", "wJalr", "hunter2"] {
            prop_assert!(!said.contains(piece), "{}", said);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "[ \n\r\t\"'=#,.\\[\\]{}a-c0-9é\u{feff}\\\\]{0,80}") {
        let _ = Config::from_toml("kiln.toml", &text).map_err(|error| error.to_string());
        let _ = decode(text.into_bytes());
    }
}
