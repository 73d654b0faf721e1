//! Checks that the pinned digest of the runner is the one that GitHub publishes. It runs on the operator's machine, which can use the
//! App's key.

use kiln_config::config::{Config, Image};
use kiln_github::{OrgClient, RunnerDownload};

use crate::code::Code;
use crate::error::{Error, Result};

/// The result of the comparison, if it found no problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinCheck {
    /// The pinned digest is the published one.
    Same,
    /// The pinned release is not the newest, and GitHub publishes digests only for the newest.
    Newer(String),
    /// GitHub publishes no digest for this architecture.
    Unpublished,
}

/// Compares the pin with what GitHub's API publishes.
///
/// # Errors
/// [`crate::Kind::Configuration`] when they differ; what GitHub answers.
pub async fn verify(config: &Config, image: &Image, github: &OrgClient) -> Result<PinCheck> {
    compare(config, image, &github.runner_downloads().await?)
}

/// The comparison itself; pure.
///
/// # Errors
/// [`crate::Kind::Configuration`] when the digests of one release differ.
pub fn compare(config: &Config, image: &Image, published: &[RunnerDownload]) -> Result<PinCheck> {
    let (version, architecture) = (&config.runner.version, image.architecture);
    let name = architecture.runner_name();
    let Some(download) = published.iter().find(|it| it.os == "linux" && it.architecture == name) else {
        return Ok(PinCheck::Unpublished);
    };
    let prefix = format!("actions-runner-linux-{name}-");
    let newest = download.filename.trim_start_matches(&prefix).trim_end_matches(".tar.gz");
    if newest != version.as_str() {
        return Ok(PinCheck::Newer(newest.to_owned()));
    }
    let (Some(published), Some(pinned)) = (&download.sha256_checksum, config.runner.sha256.get(&architecture)) else {
        return Ok(PinCheck::Unpublished);
    };
    if published.eq_ignore_ascii_case(pinned.as_str()) {
        return Ok(PinCheck::Same);
    }
    Err(Error::new(
        Code::RunnerDigestMismatch,
        format!("kiln.toml pins sha256 {pinned} of runner {version} for {architecture}, GitHub publishes {published}"),
    )
    .hint("first find out where the pinned digest came from; then `cargo xtask pin` writes the published one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = include_str!("../../../docs/kiln.toml");

    fn verdict(version: &str, sha256: Option<&str>) -> Result<PinCheck> {
        let config = Config::from_toml("kiln.toml", TOML).unwrap();
        let image = config.images.values().next().unwrap();
        let download = RunnerDownload {
            os: "linux".to_owned(),
            architecture: "x64".to_owned(),
            download_url: String::new(),
            filename: format!("actions-runner-linux-x64-{version}.tar.gz"),
            sha256_checksum: sha256.map(str::to_owned),
        };
        compare(&config, image, &[download])
    }

    #[test]
    fn the_pin_is_compared_with_what_is_published_for_that_release() {
        let config = Config::from_toml("kiln.toml", TOML).unwrap();
        let (version, pinned) =
            (config.runner.version.as_str(), config.runner.sha256.values().next().unwrap().as_str());
        assert_eq!(verdict(version, Some(pinned)).unwrap(), PinCheck::Same);
        assert_eq!(verdict(version, None).unwrap(), PinCheck::Unpublished);
        assert_eq!(verdict("9.9.9", Some("0")).unwrap(), PinCheck::Newer("9.9.9".to_owned()));
        let wrong = verdict(version, Some(&"0".repeat(64))).unwrap_err();
        assert_eq!(wrong.code, Code::RunnerDigestMismatch);
        assert!(wrong.message.contains(pinned) && wrong.hint.unwrap().contains("cargo xtask pin"));
    }
}
