//! `config.sh` and `config.sh remove`.

use anyhow::{Context as _, bail};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::start::root;
use crate::{Inputs, client, files, message};

/// Exchanges the token of `config.sh` for the right to register or to remove. A refusal is printed as GitHub sent it.
///
/// source: Runner.Listener/Configuration/ConfigurationManager.cs:826-890. There the address is below the API's base; a 404 is
/// not tried again.
async fn admin_token(client: &Client, host: &str, url: &str, token: &str, event: &str) -> anyhow::Result<String> {
    let response = client
        .post(format!("{host}/actions/runner-registration"))
        .header("authorization", format!("RemoteAuth {token}"))
        .json(&json!({ "url": url, "runner_event": event }))
        .send()
        .await?;
    let status = response.status();
    if !status.is_success() {
        let reason = status.canonical_reason().unwrap_or_default().replace(' ', "");
        eprintln!("Http response code: {reason} from 'POST {host}/actions/runner-registration' (Request Id: 0)");
        eprintln!("{}", response.text().await.unwrap_or_default());
        let reason = status.canonical_reason().unwrap_or_default();
        bail!("Response status code does not indicate success: {} ({reason}).", status.as_u16());
    }
    let admin: Value = response.json().await?;
    Ok(admin["token"].as_str().context("the exchange gave no token")?.to_owned())
}

pub(crate) async fn configure(inputs: &Inputs) -> anyhow::Result<u8> {
    let root = root()?;
    // source: Runner.Listener/Configuration/ConfigurationManager.cs:110-114
    if files::is_configured(&root) {
        bail!(
            "Cannot configure the runner because it is already configured. To reconfigure the runner, run 'config.cmd \
             remove' or './config.sh remove' first."
        );
    }
    if !inputs.flag("unattended") {
        bail!("this stand-in asks no questions: --unattended is missing");
    }
    let url = inputs.required("url")?;
    let host = url.rsplit_once('/').map(|(host, _)| host).context("--url is HOST/ORGANIZATION")?;
    let client = client()?;
    let admin = admin_token(&client, host, url, inputs.required("token")?, "register").await?;
    println!("\n√ Connected to GitHub\n");
    let name = inputs.required("name")?;
    let response = client
        .post(format!("{host}/_runner/register"))
        .bearer_auth(admin)
        .json(&json!({
            "name": name, "labels": inputs.get("labels"), "group": inputs.get("runnergroup"), "version": files::version()?,
            "architecture": if cfg!(target_arch = "aarch64") { "ARM64" } else { "X64" },
            "replace": inputs.flag("replace"), "ephemeral": inputs.flag("ephemeral"),
        }))
        .send()
        .await?;
    if !response.status().is_success() {
        bail!("Failed to add the runner. {}", message(response).await);
    }
    let made: Value = response.json().await?;
    // source: Runner.Common/ConfigurationStore.cs:20-75, the settings' names as they are written
    let settings = json!({
        "agentId": made["id"], "agentName": name, "gitHubUrl": url, "serverUrl": host, "poolId": 1, "poolName": "Default",
        "ephemeral": inputs.flag("ephemeral"), "disableUpdate": inputs.flag("disableupdate"),
        "workFolder": inputs.get("work").unwrap_or("_work"),
    });
    let identity = json!({ "scheme": "OAuth", "data": { "clientId": made["id"].to_string() } });
    for (file, content) in files::FILES.iter().zip([settings, identity, json!({ "d": made["credential"] })]) {
        files::save(&root, file, &content)?;
    }
    println!("√ Runner successfully added\n√ Runner connection is good\n\n√ Settings Saved.\n");
    Ok(0)
}

/// `config.sh remove`.
pub(crate) async fn remove(inputs: &Inputs) -> anyhow::Result<u8> {
    let root = root()?;
    let settings = files::read(&root, files::FILES[0]).context("Runner is not configured.")?;
    let text = |name: &str| files::setting(&settings, name).and_then(Value::as_str);
    let url = text("gitHubUrl").context("the settings name no organization")?;
    let host = text("serverUrl").context("the settings name no server")?;
    let client = client()?;
    let admin = admin_token(&client, host, url, inputs.required("token")?, "remove").await?;
    let body = json!({ "id": files::setting(&settings, "agentId") });
    let response = client.post(format!("{host}/_runner/remove")).bearer_auth(admin).json(&body).send().await?;
    // One that is gone is as good as removed.
    if !response.status().is_success() && response.status() != StatusCode::NOT_FOUND {
        bail!("Failed: Removing runner from the server. {}", message(response).await);
    }
    files::delete_local_config(&root)?;
    println!("√ Runner removed successfully\n√ Removed .credentials\n√ Removed .runner\n");
    Ok(0)
}
