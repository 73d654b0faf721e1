//! What of a fleet's `environment` concerns more than its jobs: the proxy, and the certificates that are trusted.
//!
//! They go to `config.sh`, the listener and docker, and to this binary itself, whose clients read them from the process's
//! environment as everybody's do: it starts itself once more with them.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;

use anyhow::Context as _;

use crate::guard;
use crate::machine::Machine;

/// A proxy's variables in lower case, as every program knows them; many know the upper case too, some only one of the two.
const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "all_proxy"];
const NO_PROXY: &str = "no_proxy";

/// The certificates that this binary, .NET and docker trust in place of the system's.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// The metadata service answers the instance itself, and nobody on its behalf.
const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

/// Where docker's unit reads its proxy from, in the image's drop-in.
pub(crate) const DOCKER: &str = "/run/kiln/docker.env";

/// The environment with its proxies as all programs understand them: in both cases, with a scheme, and never for the metadata
/// service.
pub(crate) fn with_proxies(environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = environment.clone();
    for (name, value) in proxies(environment) {
        all.insert(name.to_ascii_uppercase(), value.clone());
        all.insert(name.to_owned(), value);
    }
    all
}

/// The proxies' variables in lower case; none where there is no proxy.
fn proxies(environment: &BTreeMap<String, String>) -> BTreeMap<&'static str, String> {
    // As the runner: the lower case wins.
    // Source: `Runner.Sdk/RunnerWebProxy.cs:44-68` of actions/runner.
    let get = |name: &str| {
        let either = [name.to_owned(), name.to_ascii_uppercase()];
        either.iter().filter_map(|name| environment.get(name)).map(|value| value.trim()).find(|value| !value.is_empty())
    };
    let mut found: BTreeMap<&'static str, String> =
        PROXIES.into_iter().filter_map(|name| Some((name, with_scheme(get(name)?)))).collect();
    if !found.is_empty() {
        let named = get(NO_PROXY).unwrap_or_default();
        let mut hosts: Vec<&str> = named.split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
        hosts.extend(METADATA.iter().filter(|own| !named.split(',').any(|host| host.trim() == **own)));
        found.insert(NO_PROXY, hosts.join(","));
    }
    found
}

/// A proxy without a scheme is an HTTP proxy, for the runner and for Go's programs alike.
///
/// Source: `PrependHttpIfMissing` in `Runner.Sdk/RunnerWebProxy.cs` of actions/runner.
fn with_scheme(proxy: &str) -> String {
    if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") }
}

/// What this process is to have in its environment.
fn own(environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut own: BTreeMap<String, String> =
        proxies(environment).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Some(hosts) = own.get_mut(NO_PROXY) {
        // In a rehearsal the metadata service is elsewhere.
        if let Some(host) = guard::endpoint_host().filter(|host| !hosts.split(',').any(|known| known == host)) {
            hosts.push(',');
            hosts.push_str(&host);
        }
    }
    for name in CERTIFICATES {
        if let Some(value) = environment.get(name) {
            own.insert(name.to_owned(), value.clone());
        }
    }
    own
}

/// Starts this process once more where its environment lacks something of the fleet's; returns where it has it all.
///
/// # Errors
/// It can't be started once more.
pub(crate) fn apply(environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let own = own(environment);
    if own.iter().all(|(name, value)| std::env::var(name).is_ok_and(|found| found == *value)) {
        return Ok(());
    }
    tracing::info!(phase = "configure", "starting once more with the fleet's proxy and certificates");
    let error = std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).envs(own).exec();
    Err(error).context("start this binary once more")
}

/// Lets docker have them: its images are pulled by its daemon.
///
/// # Errors
/// They can't be written.
pub(crate) async fn give_to_docker(machine: &Machine, environment: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut all: BTreeMap<String, String> =
        proxies(environment).into_iter().map(|(name, value)| (name.to_ascii_uppercase(), value)).collect();
    all.extend(CERTIFICATES.iter().filter_map(|name| Some(((*name).to_owned(), environment.get(*name)?.clone()))));
    if all.is_empty() {
        return Ok(());
    }
    let text: String = all.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect();
    machine.write(DOCKER, &text, 0o600)?;
    if machine.is_whole() {
        // It starts beside this binary, and may have started without them. No job runs yet.
        let command = ["--no-block", "try-restart", "docker.service"];
        let status = tokio::process::Command::new("/usr/bin/systemctl").args(command).status().await;
        if !status.context("restart docker.service")?.success() {
            tracing::warn!(phase = "configure", "docker.service was not restarted: it may lack the fleet's proxy");
        }
    }
    Ok(())
}

/// As systemd reads an `EnvironmentFile=`.
fn quoted(value: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in value.chars().filter(|character| !character.is_control()) {
        if matches!(character, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(variables: [(&str, &str); N]) -> BTreeMap<String, String> {
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn a_proxy_is_understood_by_every_program() {
        for name in ["https_proxy", "HTTPS_PROXY"] {
            let all = with_proxies(&of([(name, " proxy:3128 "), ("A", "b")]));
            assert_eq!(all["https_proxy"], "http://proxy:3128", "{name}");
            assert_eq!(all["HTTPS_PROXY"], "http://proxy:3128", "{name}");
            assert_eq!(all["no_proxy"], "169.254.169.254,fd00:ec2::254");
            assert_eq!(all["NO_PROXY"], all["no_proxy"]);
            assert_eq!((all["A"].as_str(), all.contains_key("http_proxy")), ("b", false));
        }
        let both = of([
            ("http_proxy", "http://small"),
            ("HTTP_PROXY", "http://large"),
            ("NO_PROXY", "a.example, 169.254.169.254"),
        ]);
        let all = with_proxies(&both);
        assert_eq!((all["http_proxy"].as_str(), all["HTTP_PROXY"].as_str()), ("http://small", "http://small"));
        assert_eq!(all["no_proxy"], "a.example,169.254.169.254,fd00:ec2::254");
        let none = of([("no_proxy", "a"), ("http_proxy", "")]);
        assert_eq!(with_proxies(&none), none);
    }

    #[test]
    fn docker_reads_what_was_written() {
        assert_eq!(quoted("http://a:3128"), "\"http://a:3128\"");
        assert_eq!(quoted("a\"b\\c$d`\ne"), "\"a\\\"b\\\\c\\$d\\`e\"");
    }
}
