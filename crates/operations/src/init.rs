//! `cargo xtask init`: a kiln.toml of one's own, from the commented example.

use std::fmt;

use kiln_config::config::Config;
use kiln_config::model::{Organization, Region};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Value};
use url::Url;

use crate::code::Code;
use crate::error::{Error, Result};

/// The committed kiln.toml: a commented, tested example, whose comments go into everyone's own.
pub const EXAMPLE: &str = include_str!("../../../kiln.toml");

/// What a first kiln.toml needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The organization at GitHub.
    pub organization: Organization,
    /// The AWS region.
    pub region: Region,
    /// The App's client id.
    pub client_id: String,
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
    let mut document: DocumentMut = EXAMPLE
        .parse()
        .map_err(|error: toml_edit::TomlError| Error::new(Code::ConfigInvalid, error.message().to_owned()))?;
    put(&mut document["organization"], answers.organization.as_str());
    put(&mut document["region"], answers.region.as_str());
    put(&mut document["app"]["client_id"], answers.client_id.as_str());
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
    let text = document.to_string();
    Config::from_toml("kiln.toml", &text).map_err(|error| Error::new(Code::AnswerInvalid, error.to_string()))?;
    Ok(text)
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
        // A name is unique at all of GitHub.
        .append_pair("name", &format!("kiln-{organization}"))
        .append_pair("url", &format!("{}{organization}", with_slash(github_url)))
        .append_pair("public", "false")
        .append_pair("webhook_active", "false")
        .append_pair("organization_self_hosted_runners", "write");
    form
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
            client_id: "Iv23liOURS0000000000".to_owned(),
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
    fn answers_that_make_no_kiln_toml_are_refused_with_their_place() {
        let error = kiln_toml(&Answers { client_id: "no id".to_owned(), ..answers() }).expect_err("it is no client id");
        assert!(error.message.contains("client_id = \"no id\""), "{}", error.message);
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
