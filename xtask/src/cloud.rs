//! What every command begins with: kiln.toml, AWS, GitHub.

use std::path::Path;
use std::sync::Arc;

use kiln_aws::Aws;
use kiln_fleet::config::{Config, Fleet};
use kiln_fleet::model::{FleetName, KeyStore};
use kiln_github::OrgClient;
use kiln_release::deploy::key_names;
use kiln_release::ports::Keys as _;
use kiln_release::rotate_key::USER_AGENT;
use kiln_release::{Error, Kind};

/// Reads and validates kiln.toml.
pub(crate) fn read_config(path: &Path) -> Result<Config, Error> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::new(Kind::Configuration, format!("can't read `{name}`"))
            .caused_by(error)
            .hint("name the file with `--config FILE`; the kiln.toml in Kiln's repository is a commented example")
    })?;
    Config::from_toml(&name, &text).map_err(|error| Error::new(Kind::Configuration, error.to_string()))
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
                Error::new(Kind::Configuration, format!("kiln.toml has no fleet `{name}`"))
                    .hint(format!("it has: {}", known.join(", ")))
            })
        })
        .collect()
}

/// Connects to AWS in the configured region. Makes no call.
pub(crate) async fn aws(config: &Config) -> Aws {
    Aws::connect(&config.region).await
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
