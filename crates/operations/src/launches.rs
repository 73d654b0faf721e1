//! Detects failed instance launches of a group during a wait for a stack or an instance refresh.
//!
//! Neither CloudFormation nor an instance refresh shows why an instance does not come into service: both wait for hours. The
//! reason is in the group's scaling activities, and the instance's own log is in its console output. The wait ends as soon as two
//! launches in a row have failed.

use std::collections::BTreeSet;

use kiln_config::model::GroupName;
use kiln_github::OrgClient;
use tokio::time::{Duration, Instant};

use crate::code::Code;
use crate::error::{Error, Result};
use crate::ports::{CloudErrorKind, Groups, Inventory, LastWords, Launch, LaunchOutcome, Progress};
use crate::stacks::Beyond;
use crate::wait::paused;

/// How many failures in a row end a wait. A single failure may be chance: a failed host, an unavailable package mirror.
const MOST_FAILURES: usize = 2;

/// The pause between two checks. A launch takes minutes, and AWS throttles describe calls per account.
const PAUSE: Duration = Duration::from_secs(15);

/// How many lines of a terminated instance's console output are shown.
const CONSOLE_LINES: usize = 5;

/// What to do about launches that fail.
pub(crate) const HINT: &str = "fix the cause; an instance's journal and its system log in the EC2 console have \
     more details";

/// A group whose launches are watched.
#[derive(Debug)]
pub(crate) struct LaunchWatch<'a> {
    group: &'a GroupName,
    /// Tells whether GitHub is down, or only unreachable from the instance. `None` if GitHub can't be called from here.
    github: Option<&'a OrgClient>,
    /// The ids of launches that had ended when the watch began.
    before: BTreeSet<String>,
    shown: Option<String>,
    /// What instances were seen to say of themselves.
    said: BTreeSet<String>,
    next: Instant,
    /// The role has no permission to read scaling activities: it is from an older version of Kiln.
    blind: bool,
}

impl<'a> LaunchWatch<'a> {
    /// Counts only launches from now on.
    ///
    /// # Errors
    /// What AWS answers.
    pub(crate) async fn begin(
        group: &'a GroupName,
        github: Option<&'a OrgClient>,
        cloud: &impl Groups,
    ) -> Result<Self> {
        let mut watch = Self::of_all(group, github);
        let ended = watch.launches(cloud).await?.into_iter().filter(|launch| launch.outcome != LaunchOutcome::UnderWay);
        watch.before = ended.map(|launch| launch.id).collect();
        Ok(watch)
    }

    /// Counts all launches that the group ever made.
    pub(crate) fn of_all(group: &'a GroupName, github: Option<&'a OrgClient>) -> Self {
        Self {
            group,
            github,
            before: BTreeSet::new(),
            shown: None,
            said: BTreeSet::new(),
            next: Instant::now(),
            blind: false,
        }
    }

    async fn launches(&mut self, cloud: &impl Groups) -> Result<Vec<Launch>> {
        if self.blind {
            return Ok(Vec::new());
        }
        match cloud.launches(self.group).await {
            Ok(launches) => Ok(launches),
            Err(error) if error.kind == CloudErrorKind::AccessDenied => {
                self.blind = true;
                Ok(Vec::new())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Prints the latest failed launch. Returns the reason to end the wait if two launches in a row failed.
    ///
    /// # Errors
    /// What AWS answers.
    pub(crate) async fn look<C: Groups + Inventory>(
        &mut self,
        cloud: &C,
        progress: &dyn Progress,
    ) -> Result<Option<String>> {
        let now = Instant::now();
        if now < self.next {
            return Ok(None);
        }
        self.next = now + paused(PAUSE);
        let mut launches = self.launches(cloud).await?;
        launches.retain(|launch| !self.before.contains(&launch.id));
        let failed = failures_in_a_row(&launches);
        if let Some((launch, reason)) = newest_failure(&launches)
            && self.shown.as_ref() != Some(&launch.id)
        {
            progress.say(&format!("a launch of {} failed: {reason}", self.group));
            self.shown = Some(launch.id.clone());
        }
        // A wait whose instances say what they wait for. Where that can't be read, as with an older role, the wait is none the worse.
        if let Ok(states) = cloud.shown_states(std::slice::from_ref(self.group)).await {
            for trouble in crate::status::troubles(&states) {
                if self.said.insert(trouble.clone()) {
                    progress.warn(&format!("instances of {} say {trouble}", self.group));
                }
            }
        }
        let (Some((newest, reason)), true) = (failed.first(), failed.len() >= MOST_FAILURES) else { return Ok(None) };
        let words = last_words(newest, cloud).await;
        if words.as_ref().is_some_and(misses_github) && self.github_is_down().await {
            return Ok(None);
        }
        let count = failed.len();
        Ok(Some(format!("{count} launches of {} in a row failed: {reason}{}", self.group, shown(words.as_ref()))))
    }

    /// Whether GitHub is down. True if it can't be called from here: it may be down.
    async fn github_is_down(&self) -> bool {
        let Some(github) = self.github else { return true };
        github.runner_downloads().await.is_err_and(|error| error.is_retryable())
    }
}

/// Watches the launches of a fleet's group during a wait for its stack.
#[derive(Debug)]
pub(crate) struct BeyondStack<'a, C> {
    pub(crate) watch: LaunchWatch<'a>,
    pub(crate) cloud: &'a C,
}

impl<C: Groups + Inventory> Beyond for BeyondStack<'_, C> {
    async fn hopeless(&mut self, progress: &dyn Progress) -> Result<Option<String>> {
        self.watch.look(self.cloud, progress).await
    }

    async fn serves(&self) -> Result<bool> {
        let group = self.cloud.group(self.watch.group).await?;
        Ok(group.is_some_and(|group| group.instances.iter().any(|instance| instance.state == "InService")))
    }
}

/// The error that ends a wait.
pub(crate) fn failure(why: String) -> Error {
    Error::new(Code::LaunchesFail, why).hint(HINT)
}

/// The failed launches since the last successful one, newest first. Failures for lack of capacity do not count: AWS itself retries
/// them when it has capacity.
fn failures_in_a_row(launches: &[Launch]) -> Vec<(&Launch, &str)> {
    let ended = launches.iter().take_while(|launch| launch.outcome != LaunchOutcome::Succeeded);
    let failed = ended.filter_map(|launch| match &launch.outcome {
        LaunchOutcome::Failed(reason) => Some((launch, reason.as_str())),
        LaunchOutcome::UnderWay | LaunchOutcome::Succeeded => None,
    });
    failed.filter(|(_, reason)| !wants_capacity(reason)).collect()
}

fn newest_failure(launches: &[Launch]) -> Option<(&Launch, &str)> {
    launches.iter().find_map(|launch| match &launch.outcome {
        LaunchOutcome::Failed(reason) => Some((launch, reason.as_str())),
        LaunchOutcome::UnderWay | LaunchOutcome::Succeeded => None,
    })
}

/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/ts-as-capacity.html> and, for spot,
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-request-status.html>. A quota that is used up does
/// not count as a lack of capacity: it does not resolve by itself.
fn wants_capacity(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    [
        "sufficient capacity",
        "insufficientinstancecapacity",
        "no spot capacity",
        "sufficient spot capacity",
        "unfulfillablecapacity",
    ]
    .iter()
    .any(|words| reason.contains(words))
        || (reason.contains("do not have sufficient") && reason.contains("capacity"))
}

/// The last console output of an instance that failed, if EC2 has it.
async fn last_words(launch: &Launch, cloud: &impl Inventory) -> Option<LastWords> {
    cloud.last_words(launch.instance.as_ref()?).await.ok()
}

/// Whether the instance failed because it did not reach GitHub.
fn misses_github(words: &LastWords) -> bool {
    let missed = ["no answer in time", "no connection", "no trusted TLS connection", "the connection broke off"];
    words.console.iter().rev().take(20).any(|line| line.contains("GitHub") && missed.iter().any(|it| line.contains(it)))
}

fn shown(words: Option<&LastWords>) -> String {
    let Some(LastWords { reason, console }) = words else { return String::new() };
    let mut shown = reason.as_ref().map(|reason| format!("; its instance: {reason}")).unwrap_or_default();
    let lines = &console[console.len().saturating_sub(CONSOLE_LINES)..];
    if !lines.is_empty() {
        shown.push_str("; the last lines of its console:");
        lines.iter().for_each(|line| shown.push_str(&format!("\n  {line}")));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(number: u32, outcome: LaunchOutcome) -> Launch {
        Launch { id: number.to_string(), instance: None, outcome }
    }

    fn failed(reason: &str) -> LaunchOutcome {
        LaunchOutcome::Failed(reason.to_owned())
    }

    #[test]
    fn only_failures_since_the_last_success_count_and_none_for_want_of_capacity() {
        let abandoned = "Instance failed to complete user's Lifecycle Action: Lifecycle Action with token 0 was abandoned: \
                         Lifecycle Action Completed with ABANDON Result";
        let capacity = "We currently do not have sufficient m6i.large capacity in the Availability Zone you requested";
        let spot = "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity";
        let count = |outcomes: &[LaunchOutcome]| {
            let launches: Vec<Launch> = (0..).zip(outcomes.iter().cloned()).map(|(n, it)| launch(n, it)).collect();
            failures_in_a_row(&launches).len()
        };
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[LaunchOutcome::UnderWay, failed(abandoned), failed(abandoned)]), 2);
        assert_eq!(count(&[failed(abandoned), LaunchOutcome::Succeeded, failed(abandoned)]), 1);
        assert_eq!(count(&[failed(capacity), failed(abandoned), failed(spot)]), 1);
        assert_eq!(count(&[failed(capacity), failed(spot), failed(capacity)]), 0);
        assert_eq!(count(&[failed("You have requested more vCPU capacity than your current vCPU limit of 32")]), 1);
    }

    #[test]
    fn what_is_shown_is_the_end_of_the_console() {
        let console: Vec<String> = (1..=9).map(|line| format!("line {line}")).collect();
        let words = LastWords { reason: Some("Client.InternalError: Client error on launch".to_owned()), console };
        let shown = shown(Some(&words));
        assert!(shown.contains("Client error on launch") && shown.ends_with("line 9"), "{shown}");
        assert!(!shown.contains("line 4"), "{shown}");
        assert_eq!(super::shown(None), "");
        let missed = LastWords { reason: None, console: vec!["GitHub: GET /app: no connection".to_owned()] };
        assert!(misses_github(&missed) && !misses_github(&words));
    }
}
