//! `cargo xtask init`: a kiln.toml of one's own, from the commented example.

use std::fmt;

use kiln_config::config::{AppId, Config, ConfigError, is_known_region, nearest_region};
use kiln_config::model::{Organization, Region};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Value};
use url::Url;

use crate::code::Code;
use crate::error::{Error, Result};

/// A commented, tested example, whose comments go into everyone's own kiln.toml.
pub const EXAMPLE: &str = include_str!("../../../docs/kiln.toml");

/// What a repository needs next to its kiln.toml: the schema by which an editor checks it, the workflows, and the action by
/// which they install `kiln`. Paths are relative to the repository.
pub const FILES: [(&str, &str); 7] = [
    ("kiln.schema.json", include_str!("../../../kiln.schema.json")),
    (".github/actions/setup-kiln/action.yml", include_str!("../../../.github/actions/setup-kiln/action.yml")),
    (".github/actions/setup-kiln/install.sh", include_str!("../../../install.sh")),
    (".github/workflows/kiln-release.yml", include_str!("../../../docs/pipelines/release.yml")),
    (".github/workflows/kiln-freshness.yml", include_str!("../../../docs/pipelines/freshness.yml")),
    (".github/workflows/kiln-key-age.yml", include_str!("../../../docs/pipelines/key-age.yml")),
    (".github/workflows/kiln-prune.yml", include_str!("../../../docs/pipelines/prune.yml")),
];

/// What a first kiln.toml needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The organization at GitHub.
    pub organization: Organization,
    /// The AWS region.
    pub region: Region,
    /// The App's client id, or its number.
    pub app: AppId,
    /// The installation, if it is known.
    pub installation_id: Option<u64>,
    /// Where instances live.
    pub network: NetworkAnswer,
    /// GitHub Enterprise Server's address, if it is not github.com.
    pub github_url: Option<Url>,
}

/// Where instances live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkAnswer {
    /// Kiln makes a VPC.
    Create,
    /// Subnets that exist.
    Subnets {
        /// Their VPC.
        vpc: String,
        /// At least one.
        subnets: Vec<String>,
    },
}

impl fmt::Display for NetworkAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create => f.write_str("create-vpc"),
            Self::Subnets { vpc, subnets } => write!(f, "{vpc}:{}", subnets.join(",")),
        }
    }
}

impl std::str::FromStr for NetworkAnswer {
    type Err = String;

    /// `create-vpc`, or `vpc-…:subnet-…,subnet-…`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let text = text.trim();
        if text == "create-vpc" {
            return Ok(Self::Create);
        }
        let malformed = || "expected `create-vpc`, or `vpc-…:subnet-…,subnet-…`".to_owned();
        let (vpc, subnets) = text.split_once(':').ok_or_else(malformed)?;
        let subnets: Vec<String> = subnets.split(',').map(|subnet| subnet.trim().to_owned()).collect();
        if !vpc.starts_with("vpc-") || subnets.iter().any(|subnet| !subnet.starts_with("subnet-")) {
            return Err(malformed());
        }
        Ok(Self::Subnets { vpc: vpc.to_owned(), subnets })
    }
}

/// The example with the answers in it, and all of its comments.
///
/// # Errors
/// [`crate::Kind::Configuration`] when the answers make no valid kiln.toml.
pub fn kiln_toml(answers: &Answers) -> Result<String> {
    refuse_placeholders(&answers.organization, &answers.app)?;
    let mut document: DocumentMut = EXAMPLE
        .parse()
        .map_err(|error: toml_edit::TomlError| Error::new(Code::ConfigInvalid, error.message().to_owned()))?;
    put(&mut document["kiln"]["version"], env!("CARGO_PKG_VERSION"));
    put(&mut document["organization"], answers.organization.as_str());
    put(&mut document["region"], answers.region.as_str());
    match &answers.app {
        AppId::Client(id) => put(&mut document["app"]["client_id"], id.as_str()),
        AppId::App(id) => {
            let id = i64::try_from(*id)
                .map_err(|error| Error::new(Code::AnswerInvalid, "app id out of range").caused_by(error))?;
            // In the place of the client id, whose comment speaks of both.
            document["app"]["client_id"] = toml_edit::value(id);
        }
    }
    if let Some(id) = answers.installation_id {
        let id = i64::try_from(id)
            .map_err(|error| Error::new(Code::AnswerInvalid, "installation id out of range").caused_by(error))?;
        document["app"]["installation_id"] = toml_edit::value(id);
    }
    if let Some(url) = &answers.github_url {
        let mut github = toml_edit::Table::new();
        github["url"] = toml_edit::value(url.as_str().trim_end_matches('/'));
        document["github"] = Item::Table(github);
    }
    if let NetworkAnswer::Subnets { vpc, subnets } = &answers.network {
        let mut network = InlineTable::new();
        network.insert("vpc", vpc.as_str().into());
        network.insert("subnets", Value::Array(subnets.iter().map(String::as_str).collect::<Array>()));
        put(&mut document["fleet"]["linux"]["network"], network);
    }
    let mut text = document.to_string();
    if matches!(answers.app, AppId::App(_)) {
        text = text.replacen("\nclient_id = ", "\napp_id = ", 1);
    }
    Config::from_toml("kiln.toml", &text).map_err(|error| Error::new(Code::AnswerInvalid, in_short(&error)))?;
    Ok(text)
}

/// What is wrong with the answers, without the places of a file that nobody has seen.
fn in_short(error: &ConfigError) -> String {
    let one = |problem: kiln_config::config::Problem| {
        let more = problem.expected.into_iter().chain(problem.hint);
        more.fold(problem.message, |text, more| format!("{text}: {more}"))
    };
    error.problems().map(one).collect::<Vec<_>>().join("; ")
}

/// Refuses what the example has in place of one's own.
///
/// # Errors
/// [`Code::PlaceholderLeft`].
pub fn refuse_placeholders(organization: &Organization, app: &AppId) -> Result<()> {
    let placeholder = match app {
        AppId::Client(id) if id.contains("EXAMPLE") => format!("the client id `{id}`"),
        AppId::App(123_456) => "the App's number 123456".to_owned(),
        _ => return Ok(()),
    };
    Err(Error::new(
        Code::PlaceholderLeft,
        format!("{placeholder} is the example's, not that of an App of {organization}"),
    )
    .hint("write your App's client id, which is at the top of its settings; `cargo xtask init` writes all of the file"))
}

/// An organization's login, as it is typed.
///
/// # Errors
/// What was expected, and the login where an address was given.
pub fn organization(text: &str) -> std::result::Result<Organization, String> {
    let text = text.trim();
    let login = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default().trim_start_matches('@');
    text.parse().map_err(|error: kiln_config::model::Malformed| match login.parse::<Organization>() {
        Ok(login) if text.contains(['/', '@']) => format!("give the login alone, such as `{login}`"),
        _ => error.to_string(),
    })
}

/// A region that there is, as far as this version of Kiln knows.
///
/// # Errors
/// What was expected, and the region that is probably meant.
pub fn region(text: &str) -> std::result::Result<Region, String> {
    let region: Region = text.trim().parse().map_err(|error: kiln_config::model::Malformed| error.to_string())?;
    if is_known_region(&region) {
        return Ok(region);
    }
    let meant = nearest_region(&region).map(|meant| format!("; is `{meant}` meant?")).unwrap_or_default();
    Err(format!("AWS has no region `{region}` that this version of Kiln knows{meant}"))
}

/// The App's client id or number.
///
/// # Errors
/// What was expected.
pub fn app(text: &str) -> std::result::Result<AppId, String> {
    let text = text.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("that is a client secret; the client id is above it and begins with Iv".to_owned());
    }
    if let Ok(id) = text.parse::<u64>() {
        return Ok(AppId::App(id));
    }
    // Source: https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app: `Iv1.` or `Iv23`.
    if text.len() >= 10 && text.starts_with("Iv") && text.bytes().all(plain) {
        return Ok(AppId::Client(text.to_owned()));
    }
    Err(format!("`{text}` is no client id such as Iv23liEXAMPLE0000000, nor an App's number"))
}

/// GitHub's web address.
///
/// # Errors
/// What was expected.
pub fn github_url(text: &str) -> std::result::Result<Url, String> {
    let text = text.trim();
    if !text.contains("://") {
        return Err(format!("give the whole address: https://{text}"));
    }
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    let file = format!("{EXAMPLE}\n[github]\nurl = {}\n", Value::from(text));
    match Config::from_toml("kiln.toml", &file) {
        Ok(_) => Ok(url),
        Err(error) => Err(in_short(&error)),
    }
}

/// Puts a value in another's place, whose comments stay.
fn put(item: &mut Item, value: impl Into<Value>) {
    let mut value = value.into();
    if let Some(former) = item.as_value() {
        *value.decor_mut() = former.decor().clone();
    }
    *item = Item::Value(value);
}

/// The form in which an owner registers the App, filled in: one permission, no webhook, for this organization only.
///
/// Source: <https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-using-url-parameters>
pub fn app_form(github_url: &Url, organization: &str) -> Url {
    let mut form = github_url.clone();
    form.set_path(&format!("/organizations/{organization}/settings/apps/new"));
    form.query_pairs_mut()
        .append_pair("name", &app_name(organization))
        .append_pair("url", &format!("{}{organization}", with_slash(github_url)))
        .append_pair("public", "false")
        .append_pair("webhook_active", "false")
        .append_pair("organization_self_hosted_runners", "write");
    form
}

/// The App's name: it is unique at all of GitHub, and has at most 34 characters.
fn app_name(organization: &str) -> String {
    let name: String = format!("kiln-{organization}").chars().take(34).collect();
    name.trim_end_matches('-').to_owned()
}

/// The page from which a browser sends GitHub the App's manifest: one permission, no webhook, for this organization only.
///
/// Source: <https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest>
pub fn manifest_page(github_url: &Url, organization: &Organization, redirect: &str, state: &str) -> String {
    let home = format!("{}{organization}", with_slash(github_url));
    let manifest = serde_json::json!({
        "name": app_name(organization.as_str()),
        "url": home,
        "redirect_url": redirect,
        "public": false,
        "default_permissions": { "organization_self_hosted_runners": "write" },
        "default_events": [],
        // Without an address of its own the form is refused; nothing is sent there.
        "hook_attributes": { "url": home, "active": false },
    });
    let mut to = github_url.clone();
    to.set_path(&format!("/organizations/{organization}/settings/apps/new"));
    to.query_pairs_mut().append_pair("state", state);
    let escaped = |text: &str| text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Kiln: register the App</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><body style=\"font: 1rem/1.5 system-ui; max-width: 40rem; \
         margin: 3rem auto; padding: 0 1rem\"><h1>Register the App of {organization}</h1><p>GitHub shows a form with its one \
         permission, <em>Self-hosted runners: read and write</em>, and no webhook. Then it asks you to install the App; its key \
         goes from GitHub to the terminal that opened this page.</p><form method=\"post\" action=\"{}\"><input type=\"hidden\" \
         name=\"manifest\" value=\"{}\"><button id=\"register\" style=\"font: inherit; padding: .5rem 1rem\">Register at \
         GitHub</button></form></body></html>",
        escaped(to.as_str()),
        escaped(&manifest.to_string())
    )
}

/// The API of a GitHub, by the address of its pages.
pub fn api_url(github_url: &Url) -> Url {
    let address = github_url.as_str().trim_end_matches('/');
    let file = format!("{EXAMPLE}\n[github]\nurl = {}\n", Value::from(address));
    match Config::from_toml("kiln.toml", &file) {
        Ok(config) => config.github.api_url,
        Err(_) => github_url.clone(),
    }
}

fn with_slash(url: &Url) -> String {
    let text = url.as_str();
    if text.ends_with('/') { text.to_owned() } else { format!("{text}/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers {
            organization: "octo-org".parse().expect("a login"),
            region: "us-west-2".parse().expect("a region"),
            app: AppId::Client("Iv23liOURS0000000000".to_owned()),
            installation_id: Some(42),
            network: "vpc-0123456789abcdef0:subnet-0123456789abcdef0".parse().expect("a network"),
            github_url: None,
        }
    }

    #[test]
    fn the_answers_are_in_it_and_every_comment_of_the_example_too() {
        let text = kiln_toml(&answers()).expect("a valid kiln.toml");
        let config = Config::from_toml("kiln.toml", &text).expect("a valid kiln.toml");
        assert_eq!(config.organization.as_str(), "octo-org");
        assert_eq!(config.region.as_str(), "us-west-2");
        assert_eq!((config.app.id.issuer(), config.app.installation_id), ("Iv23liOURS0000000000".to_owned(), Some(42)));
        let fleet = config.fleets.values().next().expect("a fleet");
        assert!(
            matches!(&fleet.network, kiln_config::config::Network::Subnets { vpc, .. } if vpc == "vpc-0123456789abcdef0")
        );
        for comment in EXAMPLE.lines().filter(|line| line.starts_with('#')) {
            assert!(text.contains(comment), "lost: {comment}");
        }
    }

    #[test]
    fn an_app_may_be_named_by_its_number() {
        let text = kiln_toml(&Answers { app: AppId::App(1_234_567), ..answers() }).expect("a valid kiln.toml");
        assert_eq!(Config::from_toml("kiln.toml", &text).expect("it is valid").app.id, AppId::App(1_234_567));
    }

    #[test]
    fn each_answer_is_looked_at_when_it_is_given() {
        let says = |result: std::result::Result<String, String>, words: &str| {
            let error = result.expect_err("it is refused");
            assert!(error.contains(words), "{error}");
        };
        let shown = |organization: Organization| organization.to_string();
        assert_eq!(organization(" acme ").map(shown), Ok("acme".to_owned()));
        says(organization("https://github.com/acme").map(shown), "`acme`");
        says(organization("a_b").map(shown), "letters, digits");
        let shown = |region: Region| region.to_string();
        assert_eq!(region("eu-central-1 ").map(shown), Ok("eu-central-1".to_owned()));
        says(region("eu-central-9").map(shown), "is `eu-central-1` meant?");
        says(region("Mars").map(shown), "Mars");
        let shown = |app: AppId| app.issuer();
        assert_eq!(app("Iv1.0123456789abcdef").map(shown), Ok("Iv1.0123456789abcdef".to_owned()));
        assert_eq!(app("123456"), Ok(AppId::App(123_456)));
        says(app("0123456789abcdef0123456789abcdef01234567").map(shown), "client secret");
        says(app("x").map(shown), "no client id");
        let shown = |url: Url| url.to_string();
        assert_eq!(github_url("https://ghes.example").map(shown), Ok("https://ghes.example/".to_owned()));
        says(github_url("ghes.example").map(shown), "https://ghes.example");
        says(github_url("https://ghes.example/acme").map(shown), "without a path");
        says(github_url("http://ghes.example").map(shown), "https");
    }

    #[test]
    fn an_apps_name_fits_githubs_limit() {
        let url = Url::parse("https://github.com").expect("an address");
        let form = app_form(&url, &format!("{}-b", "a".repeat(28)));
        let name = form.query_pairs().find(|(key, _)| key == "name").expect("a name").1.into_owned();
        assert_eq!(name, format!("kiln-{}", "a".repeat(28)));
        assert!(name.len() <= 34);
    }

    #[test]
    fn the_form_asks_for_one_permission_and_no_webhook() {
        let url = Url::parse("https://github.example.com").expect("an address");
        assert_eq!(
            app_form(&url, "octo-org").as_str(),
            "https://github.example.com/organizations/octo-org/settings/apps/new?name=kiln-octo-org&url=https%3A%2F%2F\
             github.example.com%2Focto-org&public=false&webhook_active=false&organization_self_hosted_runners=write"
        );
    }

    #[test]
    fn a_network_is_one_word() {
        assert_eq!("create-vpc".parse(), Ok(NetworkAnswer::Create));
        for text in ["", "vpc-1", "vpc-1:", "subnet-1:vpc-1", "vpc-1:subnet-1,sg-1"] {
            assert!(text.parse::<NetworkAnswer>().is_err(), "{text}");
        }
    }
}
