//! Which variables a fleet may set for its runners and jobs. The operator's side refuses the others in kiln.toml, and
//! an instance can ask again: what is refused here changes which code a program of the instance's own loads, or takes
//! the place of what Kiln and the runner set themselves.

/// Why a name can't be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not letters, digits and underscores, or a digit first, or nothing.
    Malformed,
    /// The dynamic loader, the C library, a shell or .NET would load or run what it names.
    LoadsCode,
    /// The runner's own, or Kiln's.
    Reserved,
}

/// Names that decide what a program loads or runs before its own first line.
///
/// Sources: ld.so(8) on `LD_*`, `GLIBC_TUNABLES` and the variables that it removes for privileged programs; bash(1) on
/// `BASH_ENV`, `SHELLOPTS`, `BASHOPTS` and `PS4`, with which the runner's scripts and Kiln's hooks run;
/// <https://learn.microsoft.com/en-us/dotnet/core/runtime-config/debugging-profiling> and
/// <https://github.com/dotnet/runtime/blob/main/docs/design/features/host-startup-hook.md> on the runner itself.
const LOADERS: &[&str] = &[
    "BASHOPTS",
    "BASH_ENV",
    "DOTNET_ADDITIONAL_DEPS",
    "DOTNET_SHARED_STORE",
    "DOTNET_STARTUP_HOOKS",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "LOCPATH",
    "NIS_PATH",
    "NLSPATH",
    "PS4",
    "SHELLOPTS",
];

/// Families of such names.
const LOADER_FAMILIES: &[&str] = &["LD_", "CORECLR_", "COR_PROFILER", "DOTNET_PROFILER"];

/// What the runner and Kiln set, or take as their own input: `GITHUB_*` and `RUNNER_*` belong to a job's context.
///
/// Source: <https://docs.github.com/en/actions/reference/workflows-and-actions/variables>
const RESERVED_FAMILIES: &[&str] = &["ACTIONS_ALLOW_UNSECURE_", "ACTIONS_RUNNER_", "GITHUB_", "KILN_", "RUNNER_"];

/// Why this variable can't be set for runners and jobs, if it can't. Names are compared without regard to case: the
/// runner's programs do so in part.
pub fn refused(name: &str) -> Option<Refused> {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(letters) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Some(Refused::Malformed);
    }
    let name = name.to_ascii_uppercase();
    let is_of = |families: &[&str]| families.iter().any(|family| name.starts_with(family));
    if LOADERS.contains(&name.as_str()) || is_of(LOADER_FAMILIES) {
        return Some(Refused::LoadsCode);
    }
    is_of(RESERVED_FAMILIES).then_some(Refused::Reserved)
}

/// Is the variable a proxy's address? `no_proxy` is a list of hosts.
pub fn names_a_proxy(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with("_proxy") && name != "no_proxy"
}

/// A proxy's address with its scheme: programs take `proxy.example.com:3128` for http, but not all of them.
///
/// Source: <https://github.com/actions/runner/pull/2663>, and curl(1) on `http_proxy`.
pub fn with_scheme(address: &str) -> String {
    let address = address.trim();
    if address.is_empty() || address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}
