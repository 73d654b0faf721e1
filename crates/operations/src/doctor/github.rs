//! GitHub: the App, its key, its installation and its permissions; the runner groups; the pinned runner.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_config::config::{AppId, Config, Fleet};
use kiln_github::{App, AppClient, AppSigner, ErrorKind, Installation, OrgClient, RunnerGroup};

use super::{Finding, Verdict};
use crate::code::Code;
use crate::deploy::key_names;
use crate::error::{Error, Result};
use crate::ports::Cloud;
use crate::rotate_key::USER_AGENT;

/// The permission that Kiln needs. GitHub adds `metadata: read` to every installation.
const PERMISSION: &str = "organization_self_hosted_runners";

pub(super) async fn examine(config: &Config, cloud: &impl Cloud) -> Vec<Finding> {
    let check = "app-key";
    let names = key_names(config);
    let mut findings = Vec::new();
    let mut signer: Option<Arc<dyn AppSigner>> = None;
    let mut missing = Vec::new();
    for store in config.key_stores() {
        match cloud.current_key(&names, store).await {
            Ok(Some(key)) => {
                findings.push(Finding::good(check, format!("{} is current in {store}", key.fingerprint)));
                signer = signer.or_else(|| Some(cloud.current_signer(&names, store).into()));
            }
            Ok(None) => missing.push(store),
            Err(error) => findings.push(Finding::failed(check, Verdict::Unknown, &error.into())),
        }
    }
    for store in missing {
        let what = format!("there is none in {store} yet");
        let hint = "run `cargo xtask rotate-key --pem FILE`: its first run installs the key";
        // Without any key nothing can run yet: installing it is the next step, and no fault.
        findings.push(match &signer {
            Some(_) => Finding::wrong(check, what, hint),
            None => Finding::notice(check, what, hint),
        });
    }
    match signer {
        Some(signer) => findings.extend(examine_with(config, signer).await),
        None => findings.push(Finding::unknown(
            "app",
            "GitHub answers nothing without the App's key",
            "install the key, then run `doctor` again",
        )),
    }
    findings
}

async fn examine_with(config: &Config, signer: Arc<dyn AppSigner>) -> Vec<Finding> {
    let client = AppClient::new(&config.github.api_url, USER_AGENT, config.app.id.issuer(), Arc::clone(&signer));
    let client = match client {
        Ok(client) => client,
        Err(error) => return vec![Finding::failed("app", Verdict::Unknown, &error.into())],
    };
    let mut findings = Vec::new();
    match client.app().await {
        Ok(app) => findings.push(is_the_app(config, &app)),
        Err(error) => {
            findings.push(Finding::failed("app", Verdict::Wrong, &error.into()));
            return findings;
        }
    }
    let installation = match client.org_installation(config.organization.as_str()).await {
        Ok(installation) => installation,
        Err(error) => {
            findings.push(not_installed(config, error));
            return findings;
        }
    };
    let usable = is_installed(config, &installation);
    let serves = usable.verdict != Verdict::Wrong;
    findings.push(usable);
    findings.extend(permissions(&installation.permissions));
    let granted = installation.permissions.get(PERMISSION).is_some_and(|granted| granted == "write");
    if !serves || !granted {
        findings.push(Finding::unknown(
            "runner-groups",
            "the App has no permission to list them",
            "fix its installation first",
        ));
        return findings;
    }
    let organization = OrgClient::new(
        &config.github.api_url,
        USER_AGENT,
        config.app.id.issuer(),
        signer,
        config.organization.as_str(),
        Some(installation.id),
    );
    match organization {
        Ok(organization) => findings.extend(groups(config, &organization).await),
        Err(error) => findings.push(Finding::failed("runner-groups", Verdict::Unknown, &Error::from(error))),
    }
    findings
}

fn is_the_app(config: &Config, app: &App) -> Finding {
    let is = match &config.app.id {
        AppId::Client(id) => app.client_id.as_deref() == Some(id),
        AppId::App(id) => app.id == *id,
    };
    if is {
        return Finding::good("app", format!("GitHub knows the key as App `{}` ({})", app.slug, app.id));
    }
    Finding::wrong(
        "app",
        format!("GitHub knows the key as App `{}` ({}), not as {}", app.slug, app.id, config.app.id.issuer()),
        "[app] in kiln.toml names the App; generate its keys in that App's settings",
    )
}

fn not_installed(config: &Config, error: kiln_github::Error) -> Finding {
    let check = "installation";
    if error.kind != ErrorKind::NotInstalled {
        return Finding::failed(check, Verdict::Unknown, &error.into());
    }
    let what = format!("the App is not installed in `{}`", config.organization);
    let hint = error.hint().unwrap_or_default();
    Finding::wrong(check, what, hint)
}

fn is_installed(config: &Config, installation: &Installation) -> Finding {
    let check = "installation";
    let organization = &config.organization;
    if let Some(since) = &installation.suspended_at {
        return Finding::wrong(
            check,
            format!("the App's installation in `{organization}` is suspended since {since}"),
            "an owner of the organization can unsuspend it: Settings, GitHub Apps, Configure, Unsuspend",
        );
    }
    match config.app.installation_id {
        Some(id) if id != installation.id => Finding::wrong(
            check,
            format!("kiln.toml says installation {id}, the one in `{organization}` is {}", installation.id),
            format!("set `installation_id = {}`, or remove it", installation.id),
        ),
        Some(id) => Finding::good(check, format!("{id} in `{organization}`")),
        None => Finding::notice(
            check,
            format!("{} in `{organization}`, looked up at each boot", installation.id),
            format!("`installation_id = {}` in [app] saves each boot a request", installation.id),
        ),
    }
}

fn permissions(granted: &BTreeMap<String, String>) -> Vec<Finding> {
    let check = "app-permissions";
    let mut findings = Vec::new();
    findings.push(match granted.get(PERMISSION).map(String::as_str) {
        Some("write") => Finding::good(check, "self-hosted runners: read and write"),
        has => Finding::wrong(
            check,
            format!("self-hosted runners (organization): {}", has.unwrap_or("no access")),
            "set it to read and write in the App's settings, then accept the change in the organization's",
        ),
    });
    let more: Vec<String> = granted
        .iter()
        .filter(|(name, access)| {
            name.as_str() != PERMISSION && (name.as_str(), access.as_str()) != ("metadata", "read")
        })
        .map(|(name, access)| format!("{name}: {access}"))
        .collect();
    if !more.is_empty() {
        findings.push(Finding::notice(
            check,
            format!("more than Kiln asks for: {}", more.join(", ")),
            "remove permissions that nothing else needs: anyone who gets the key has all of them",
        ));
    }
    findings
}

async fn groups(config: &Config, organization: &OrgClient) -> Vec<Finding> {
    let check = "runner-groups";
    let groups = match organization.runner_groups().await {
        Ok(groups) => groups,
        Err(error) => return vec![Finding::failed(check, Verdict::Unknown, &error.into())],
    };
    let mut findings = Vec::new();
    for fleet in config.fleets.values() {
        let Some(group) = groups.iter().find(|group| group.name == fleet.runner_group) else {
            let known: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
            findings.push(Finding::wrong(
                check,
                format!(
                    "fleet `{}`: `{}` has no runner group `{}`",
                    fleet.name, config.organization, fleet.runner_group
                ),
                format!(
                    "it has: {}; set one of them as `runner_group`, or create the group in the organization's settings",
                    known.join(", ")
                ),
            ));
            continue;
        };
        findings.push(allows(fleet.name.as_str(), group, organization).await);
    }
    findings
}

/// Fails if a fleet's runner group allows public repositories: anyone who opens a pull request there could run code on its
/// instances.
///
/// # Errors
/// [`Code::RunnerGroupPublic`]; GitHub's errors.
pub async fn require_private_group(fleet: &Fleet, organization: &OrgClient) -> Result<()> {
    let groups = organization.runner_groups().await?;
    let open = groups.iter().any(|group| group.name == fleet.runner_group && group.allows_public_repositories);
    if !open {
        return Ok(());
    }
    let message = format!("fleet `{}`: public repositories may use runner group `{}`", fleet.name, fleet.runner_group);
    Err(Error::new(Code::RunnerGroupPublic, message).hint(
        "disallow it in the group's settings (organization, Actions, Runner groups); or, if anyone who opens a pull request \
         there may run code on your instances, give --allow-public-repositories",
    ))
}

/// Checks that repositories may use the group, and that no public ones may.
async fn allows(fleet: &str, group: &RunnerGroup, organization: &OrgClient) -> Finding {
    let check = "runner-groups";
    let name = &group.name;
    if group.visibility.as_deref() == Some("selected") {
        match organization.runner_group_repositories(group.id).await {
            Ok(0) => {
                return Finding::wrong(
                    check,
                    format!("fleet `{fleet}`: no repository may use runner group `{name}`"),
                    "select repositories in the group's settings (organization, Actions, Runner groups)",
                );
            }
            Ok(_) => {}
            Err(error) => return Finding::failed(check, Verdict::Unknown, &error.into()),
        }
    }
    if group.allows_public_repositories {
        return Finding::notice(
            check,
            format!("fleet `{fleet}`: public repositories may use runner group `{name}`"),
            "anyone who opens a pull request there can run code on your instances: disallow it in the group's settings; `deploy` \
             refuses without --allow-public-repositories",
        );
    }
    Finding::good(check, format!("fleet `{fleet}`: `{name}`"))
}
