//! How long GitHub supports a runner version: until when it can register and gets jobs.
//!
//! GitHub announces an end date for some versions. For the others its rule applies: a runner that does not update itself is supported
//! for 30 days after a newer release. Kiln's runners never update themselves.

use std::fmt;
use std::time::{Duration, SystemTime};

use kiln_config::model::{OLDEST_RUNNER, RunnerVersion};
use kiln_github::{OrgClient, RunnerDeprecation, RunnerDownload};

use crate::code::Code;
use crate::error::{Error, Result};
use crate::when;

/// When GitHub began to refuse runners older than [`OLDEST_RUNNER`]: 2026-09-01.
const FLOOR_SINCE_SECS: u64 = 1_788_220_800;

/// How long GitHub supports a runner that does not update itself after a newer release.
///
/// Source: <https://docs.github.com/en/actions/reference/runners/self-hosted-runners>
const RULE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Two weeks are enough for a pull request, its review, a bake and a rollout, even with a holiday.
pub const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// The runner releases that GitHub offers, and their dates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Releases {
    /// The newest version that the organization is offered for download.
    pub newest: RunnerVersion,
    /// Releases with their dates; empty if this GitHub server does not list them.
    pub dated: Vec<(RunnerVersion, SystemTime)>,
}

/// The source of a version's end date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// The version is the newest: no end is known.
    Newest,
    /// GitHub has announced a date.
    Announced,
    /// Thirty days after a newer release.
    ThirtyDays,
    /// There is a newer release, but its date is unknown.
    Undated,
    /// The version is older than the oldest that GitHub allows.
    TooOld,
}

/// How urgent a version's replacement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// Nothing to do yet.
    None,
    /// An end is near, or the end is unknown.
    Due,
    /// An end has passed.
    Over,
}

/// How long GitHub supports a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifetime {
    pub version: RunnerVersion,
    /// When it can no longer register, if that is known.
    pub registers_until: Option<SystemTime>,
    /// When it gets no more jobs, if that is known.
    pub runs_until: Option<SystemTime>,
    /// The source of the dates.
    pub basis: Basis,
}

impl Lifetime {
    /// The earlier of the two dates.
    pub fn end(&self) -> Option<SystemTime> {
        self.registers_until.into_iter().chain(self.runs_until).min()
    }

    /// Whether a runner of this version can still register.
    pub fn registers(&self, now: SystemTime) -> bool {
        self.registers_until.is_none_or(|end| end > now)
    }

    /// Whether a runner of this version still gets jobs.
    pub fn runs(&self, now: SystemTime) -> bool {
        self.runs_until.is_none_or(|end| end > now)
    }

    /// How urgent the replacement is.
    pub fn urgency(&self, now: SystemTime) -> Urgency {
        match self.end() {
            Some(end) if end <= now => Urgency::Over,
            Some(end) if end <= now + WARN_BEFORE => Urgency::Due,
            None if self.basis == Basis::Undated => Urgency::Due,
            _ => Urgency::None,
        }
    }

    /// As text: "gets jobs until 2026-12-20 (26 days), thirty days after a newer release".
    pub fn describe(&self, now: SystemTime) -> String {
        let until = |verb: &str, past: &str, end: Option<SystemTime>| {
            end.map(|end| {
                let date = when::date(end);
                if end <= now {
                    format!("{past} since {date}")
                } else {
                    format!("{verb} until {date} ({})", when::days(when::days_between(now, end)))
                }
            })
        };
        let registers = until("registers", "can't register", self.registers_until);
        let runs = until("gets jobs", "gets no jobs", self.runs_until);
        let ends = registers.into_iter().chain(runs).collect::<Vec<_>>().join(", ");
        match self.basis {
            Basis::Newest => "the newest release".to_owned(),
            Basis::Undated => "may end any day: there is a newer release with an unknown date".to_owned(),
            Basis::Announced => format!("{ends}, as announced by GitHub"),
            Basis::ThirtyDays => format!("{ends}, thirty days after a newer release"),
            Basis::TooOld => format!("{ends}: older than GitHub allows"),
        }
    }
}

impl fmt::Display for Urgency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "ok",
            Self::Due => "due",
            Self::Over => "over",
        })
    }
}

/// The releases that GitHub offers, and their dates. Makes two requests.
///
/// # Errors
/// GitHub's errors; [`crate::Kind::Other`] if it offers no release of the runner for Linux.
pub async fn releases(github: &OrgClient) -> Result<Releases> {
    let downloads = github.runner_downloads().await?;
    releases_with(&downloads, github).await
}

/// Like [`releases`], with known downloads.
///
/// # Errors
/// As [`releases`].
pub async fn releases_with(downloads: &[RunnerDownload], github: &OrgClient) -> Result<Releases> {
    let newest = newest(downloads)?;
    let listed = github.runner_releases().await?.into_iter().filter(|release| !release.prerelease);
    let dated = listed.filter_map(|release| {
        let version = release.tag_name.trim_start_matches('v').parse().ok()?;
        Some((version, when::parse(&release.published_at?)?))
    });
    Ok(Releases { newest, dated: dated.collect() })
}

/// The newest release for Linux among the downloads.
///
/// # Errors
/// [`crate::Kind::Other`] when there is none.
pub fn newest(downloads: &[RunnerDownload]) -> Result<RunnerVersion> {
    let of_linux = downloads.iter().filter(|download| download.os == "linux");
    let versions = of_linux.filter_map(|download| version_of(&download.filename));
    versions.max().ok_or_else(|| {
        Error::new(Code::RunnerReleaseMissing, "GitHub offers the organization no release of the runner for Linux")
    })
}

/// The version in an asset's name: `actions-runner-linux-x64-2.338.0.tar.gz`.
pub fn version_of(filename: &str) -> Option<RunnerVersion> {
    filename.strip_suffix(".tar.gz")?.rsplit('-').next()?.parse().ok()
}

/// How long GitHub supports a version. Makes one request.
///
/// # Errors
/// What GitHub answers.
pub async fn lifetime(version: &RunnerVersion, releases: &Releases, github: &OrgClient) -> Result<Lifetime> {
    let announced = github.runner_deprecation(version.as_str()).await?;
    Ok(judge(version, releases, announced.as_ref()))
}

/// How long GitHub supports a version, from GitHub's answers; pure.
pub fn judge(version: &RunnerVersion, releases: &Releases, announced: Option<&RunnerDeprecation>) -> Lifetime {
    let ends =
        |registers_until, runs_until, basis| Lifetime { version: version.clone(), registers_until, runs_until, basis };
    if version.numbers() < OLDEST_RUNNER {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(FLOOR_SINCE_SECS);
        return ends(Some(since), Some(since), Basis::TooOld);
    }
    let date = |of: fn(&RunnerDeprecation) -> Option<&String>| announced.and_then(of).and_then(|at| when::parse(at));
    let registers_until = date(|announced| announced.registration_deprecates_at.as_ref());
    let runs_until = date(|announced| announced.runtime_deprecates_at.as_ref());
    if registers_until.is_some() || runs_until.is_some() {
        return ends(registers_until, runs_until, Basis::Announced);
    }
    if releases.newest <= *version {
        return ends(None, None, Basis::Newest);
    }
    let newer = releases.dated.iter().filter(|(newer, _)| newer > version);
    match newer.map(|(_, at)| *at).min() {
        Some(at) => ends(None, Some(at + RULE), Basis::ThirtyDays),
        None => ends(None, None, Basis::Undated),
    }
}

/// Fails if the version can't register or would get no jobs.
///
/// # Errors
/// [`crate::Kind::Precondition`] with the command that pins a newer version; GitHub's errors.
pub async fn require_served(version: &RunnerVersion, github: &OrgClient, now: SystemTime) -> Result<Lifetime> {
    let releases = releases(github).await?;
    let lifetime = lifetime(version, &releases, github).await?;
    if lifetime.registers(now) && lifetime.runs(now) {
        return Ok(lifetime);
    }
    let described = lifetime.describe(now);
    Err(Error::new(
        Code::RunnerUnsupported,
        format!("runner {version} must not be baked into an image: it {described}"),
    )
    .hint(format!("`cargo xtask pin` updates kiln.toml to the newest release, {}", releases.newest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::when::DAY;

    fn at(text: &str) -> SystemTime {
        when::parse(text).expect("a test's time")
    }

    fn version(text: &str) -> RunnerVersion {
        text.parse().expect("a test's version")
    }

    fn releases(dated: &[(&str, &str)]) -> Releases {
        let dated = dated.iter().map(|(one, date)| (version(one), at(&format!("{date}T12:00:00Z")))).collect();
        Releases { newest: version("2.338.0"), dated }
    }

    fn announced(registration: Option<&str>, runtime: Option<&str>) -> RunnerDeprecation {
        RunnerDeprecation {
            runner_version: "2.337.1".to_owned(),
            registration_deprecates_at: registration.map(str::to_owned),
            runtime_deprecates_at: runtime.map(str::to_owned),
        }
    }

    #[test]
    fn each_basis_gives_its_dates_and_urgency() {
        let dated = [("2.338.0", "2026-11-20"), ("2.337.2", "2026-11-01"), ("2.337.1", "2026-10-01")];
        let now = at("2026-11-24T00:00:00Z");
        let none = announced(None, None);
        let cases = [
            ("2.338.0", None, &dated[..], Basis::Newest, Urgency::None, "the newest release"),
            ("2.340.0", None, &dated, Basis::Newest, Urgency::None, "the newest release"),
            ("2.337.1", None, &dated, Basis::ThirtyDays, Urgency::Due, "gets jobs until 2026-12-01 (7 days)"),
            ("2.337.2", Some(&none), &dated, Basis::ThirtyDays, Urgency::None, "gets jobs until 2026-12-20 (26 days)"),
            ("2.337.1", Some(&none), &dated[..0], Basis::Undated, Urgency::Due, "may end any day"),
            ("2.328.9", None, &dated, Basis::TooOld, Urgency::Over, "can't register since 2026-09-01"),
        ];
        for (one, said, dated, basis, urgency, words) in cases {
            let lifetime = judge(&version(one), &releases(dated), said);
            assert_eq!((lifetime.basis, lifetime.urgency(now)), (basis, urgency), "{one}");
            assert!(lifetime.describe(now).contains(words), "{one}: {}", lifetime.describe(now));
        }
    }

    #[test]
    fn what_github_announces_counts_before_its_rule() {
        let now = at("2026-11-24T00:00:00Z");
        let judged = |registration, runtime| {
            judge(&version("2.337.1"), &releases(&[("2.338.0", "2026-01-01")]), Some(&announced(registration, runtime)))
        };
        let far = judged(Some("2027-01-10T00:00:00Z"), Some("2027-02-10T00:00:00Z"));
        assert_eq!((far.basis, far.urgency(now)), (Basis::Announced, Urgency::None));
        assert!(far.registers(now) && far.runs(now));
        let near = judged(Some("2026-12-07T00:00:00Z"), None);
        assert_eq!(near.urgency(now), Urgency::Due);
        let stopped = judged(None, Some("2026-11-23T00:00:00Z"));
        assert_eq!(stopped.urgency(now), Urgency::Over);
        assert!(stopped.registers(now) && !stopped.runs(now));
        assert_eq!(stopped.describe(now), "gets no jobs since 2026-11-23, as announced by GitHub");
    }

    #[test]
    fn the_warning_begins_fourteen_days_before() {
        let now = at("2026-11-24T00:00:00Z");
        for (end, urgency) in [(now + 15 * DAY, Urgency::None), (now + 14 * DAY, Urgency::Due), (now, Urgency::Over)] {
            let lifetime = Lifetime {
                version: version("2.338.0"),
                registers_until: Some(end),
                runs_until: None,
                basis: Basis::Announced,
            };
            assert_eq!(lifetime.urgency(now), urgency);
        }
    }

    #[test]
    fn the_version_is_read_from_the_assets_name() {
        assert_eq!(version_of("actions-runner-linux-x64-2.338.0.tar.gz"), Some(version("2.338.0")));
        assert_eq!(version_of("actions-runner-win-x64-2.338.0.zip"), None);
        assert_eq!(version_of("actions-runner-linux-x64-noexternals.tar.gz"), None);
    }
}
