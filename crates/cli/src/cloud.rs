//! What every command begins with: kiln.toml, AWS, GitHub.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_aws::Aws;
use kiln_config::config::{Config, Fleet, MOST_BYTES as MOST_CONFIG_BYTES, decode, is_version, wanted_version};
use kiln_config::model::{FleetName, KeyStore};
use kiln_github::OrgClient;
use kiln_operations::deploy::key_names;
use kiln_operations::init;
use kiln_operations::pin::HttpText;
use kiln_operations::ports::Keys as _;
use kiln_operations::rotate_key::USER_AGENT;
use kiln_operations::{Code, Error};

use crate::{files, ui};

/// Reads and validates kiln.toml, and says what is odd about it.
pub(crate) fn read_config(path: &Path) -> Result<Config, Error> {
    let config = look_at_config(path)?;
    for notice in &config.notices {
        ui::caution(&format!("{}, {notice}", path.display()));
    }
    Ok(config)
}

/// The same without a word.
pub(crate) fn look_at_config(path: &Path) -> Result<Config, Error> {
    let name = path.display().to_string();
    let text = config_text(path)?;
    require_version(&name, &text)?;
    let config = Config::from_toml(&name, &text)
        .map_err(|error| Error::new(Code::ConfigInvalid, error.to_string()).caused_by(error))?;
    init::refuse_placeholders(&config.organization, &config.app.id)?;
    Ok(config)
}

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Checked before anything else of the file: another version may have other keys.
fn require_version(name: &str, text: &str) -> Result<(), Error> {
    match wanted_version(text) {
        Some(wanted) if !is_version(VERSION, &wanted) => {
            Err(Error::new(Code::VersionDiffers, format!("`{name}` is for Kiln {wanted}, and this is Kiln {VERSION}"))
                .hint(format!(
                    "install {wanted}; or, to move to {VERSION}, read its changes and set `version = \"{VERSION}\"` in \
                     `[kiln]`"
                )))
        }
        _ => Ok(()),
    }
}

/// The text of a kiln.toml, whatever it says.
pub(crate) fn config_text(path: &Path) -> Result<String, Error> {
    let unreadable = || Error::new(Code::ConfigUnreadable, format!("can't read `{}`", path.display()));
    let bytes = files::read(path, MOST_CONFIG_BYTES).map_err(|error| {
        let hint = files::hint(&error, "name the file with `--config FILE`; `cargo xtask init` writes one");
        unreadable().caused_by(error).hint(hint)
    })?;
    decode(bytes.to_vec()).map_err(|error| unreadable().hint(error.hint()).caused_by(error))
}

/// The fleets a command is about: the ones named, or all.
pub(crate) fn fleets<'a>(config: &'a Config, names: &[FleetName]) -> Result<Vec<&'a Fleet>, Error> {
    if names.is_empty() {
        return Ok(config.fleets.values().collect());
    }
    names
        .iter()
        .map(|name| {
            config.fleets.get(name).ok_or_else(|| {
                let known: Vec<_> = config.fleets.keys().map(FleetName::as_str).collect();
                Error::new(Code::UnknownFleet, format!("kiln.toml has no fleet `{name}`"))
                    .hint(format!("it has: {}", known.join(", ")))
            })
        })
        .collect()
}

/// Connects to AWS in the configured region. Makes no call.
pub(crate) async fn aws(config: &Config) -> Aws {
    Aws::connect(&config.region).await.with_stack_role(config.cloudformation_role.as_deref())
}

/// GitHub, as the App whose current key is in the store.
pub(crate) fn github(config: &Config, aws: &Aws, store: KeyStore) -> Result<OrgClient, Error> {
    let signer = Arc::from(aws.current_signer(&key_names(config), store));
    Ok(OrgClient::new(
        &config.github.api_url,
        USER_AGENT,
        config.app.id.issuer(),
        signer,
        config.organization.as_str(),
        config.app.installation_id,
    )?)
}

/// GitHub, as the App, by the first of the stores in use that has the key.
///
/// # Errors
/// [`kiln_operations::Kind::Precondition`] with the command that installs the key.
pub(crate) async fn github_by_any_key(config: &Config, aws: &Aws) -> Result<OrgClient, Error> {
    match stored_key(config, aws).await? {
        Some(store) => github(config, aws, store),
        None => {
            Err(Error::new(Code::KeyNotInstalled, "the GitHub App's key is in none of the stores that kiln.toml names")
                .hint("run `cargo xtask rotate-key --pem FILE` first: its first run installs the key"))
        }
    }
}

/// The first of the stores in use that has the key.
pub(crate) async fn stored_key(config: &Config, aws: &Aws) -> Result<Option<KeyStore>, Error> {
    for store in config.key_stores() {
        if aws.current_key(&key_names(config), store).await?.is_some() {
            return Ok(Some(store));
        }
    }
    Ok(None)
}

/// The stores in use that have no key.
pub(crate) async fn stores_without_key(config: &Config, aws: &Aws) -> Result<Vec<KeyStore>, Error> {
    let mut missing = Vec::new();
    for store in config.key_stores() {
        if aws.current_key(&key_names(config), store).await?.is_none() {
            missing.push(store);
        }
    }
    Ok(missing)
}

/// A list of Node's releases is under a megabyte; a mirror that answers with more than ten sends something else.
const MOST_BYTES: usize = 10 << 20;

/// Such a list is there within a second or two.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Reads public texts.
#[derive(Debug)]
pub(crate) struct HttpClient(reqwest::Client);

impl HttpClient {
    pub(crate) fn new() -> Result<Self, Error> {
        let client = reqwest::Client::builder().user_agent(USER_AGENT).timeout(ANSWER_LIMIT).build();
        client.map(Self).map_err(|error| Error::new(Code::Internal, "HTTPS can't be set up").caused_by(error))
    }
}

impl HttpText for HttpClient {
    async fn text(&self, url: &str) -> Result<String, Error> {
        let cannot = |error: reqwest::Error| {
            Error::new(Code::DownloadFailed, format!("can't read {url}"))
                .caused_by(error.without_url())
                .hint("is there a way out from here, and does kiln.toml name the right mirror?")
        };
        let mut answer = self.0.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(cannot)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(cannot)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST_BYTES {
                return Err(Error::new(Code::DownloadFailed, format!("{url} is longer than any list of releases")));
            }
        }
        String::from_utf8(bytes)
            .map_err(|error| Error::new(Code::DownloadFailed, format!("{url} is no text")).caused_by(error))
    }
}
