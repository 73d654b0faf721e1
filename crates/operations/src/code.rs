//! Stable names of failures, for machines, for searching, and for `cargo xtask explain`.
//!
//! A name stays for as long as its meaning does. Renaming one is a breaking change and goes into the changelog.

use std::fmt;
use std::str::FromStr;

use kiln_github::ErrorKind as GitHub;

use crate::error::Kind;
use crate::ports::CloudErrorKind;

/// One row each: the variant, its name, the kind it is of, what it means, what to do.
macro_rules! codes {
    ($($variant:ident $name:literal $kind:ident $meaning:literal $remedy:literal)*) => {
        /// Which failure it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the handbook.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its stable name: `image-not-recorded`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The kind, and with it the exit code, that it usually comes with.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),* }
            }

            /// What has happened.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),* }
            }

            /// What to do about it.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy),* }
            }
        }
    };
}

codes! {
    ConfigUnreadable "config-unreadable" Configuration
        "The configuration file could not be read."
        "Give its path with `--config FILE` or `KILN_CONFIG`. The kiln.toml in Kiln's repository is a commented example."
    ConfigInvalid "config-invalid" Configuration
        "kiln.toml has problems; all of them are listed, each with line and column."
        "Mend what is marked. An editor that reads `kiln.schema.json` shows the same while you type."
    UnknownFleet "unknown-fleet" Configuration
        "`--fleet` names a fleet that kiln.toml does not have."
        "Take one of the names in the hint, or add a `[fleet.NAME]` table."
    RunnerDigestMissing "runner-digest-missing" Configuration
        "A fleet uses an architecture for which `[runner.sha256]` has no digest."
        "Add the digest of that architecture's archive; it is on the release's page at GitHub."
    BootConfigTooLarge "boot-config-too-large" Configuration
        "What an instance is told at boot does not fit into a stack's parameter."
        "Use fewer or shorter labels and variables."
    KeyFileUnreadable "key-file-unreadable" Configuration
        "The file given with `--pem` could not be read."
        "Give the .pem file that GitHub downloaded when the key was made, or `-` for standard input."
    KeyFileInvalid "key-file-invalid" Configuration
        "The file given with `--pem` holds no private key that a GitHub App can have."
        "Generate a private key in the App's settings and give the file that is downloaded, unchanged."
    WrongApp "wrong-app" Configuration
        "The key is good, but another App's."
        "Compare `[app]` in kiln.toml with the App whose settings the key was made in."
    BootstrapUnfit "bootstrap-unfit" Configuration
        "The file given with `--bootstrap` is unreadable, not static, or for another architecture."
        "Leave `--bootstrap` out, and the binary is built."
    AwsCredentials "aws-credentials" Access
        "No AWS credentials were found, or AWS does not accept them (expired, wrong)."
        "Give credentials in one of the usual ways and check them with `aws sts get-caller-identity`. In a pipeline: does the job have `id-token: write`, and may its role be assumed from this repository?"
    AwsAccessDenied "aws-access-denied" Access
        "The AWS credentials are good, but lack the permission for the action named below the error."
        "Grant it to the role that the command runs as."
    AwsUnreachable "aws-unreachable" Other
        "No connection to AWS."
        "Is `region` in kiln.toml a region of yours, and is there a way out from here (proxy, firewall)?"
    AwsThrottled "aws-throttled" Other
        "AWS asked to slow down, and still did after eight attempts."
        "Run the same command again: it goes on from where it stopped."
    AwsQuota "aws-quota" Precondition
        "A quota of the account is used up."
        "Have the named quota raised (Service Quotas), then run the command again."
    AwsConflict "aws-conflict" Precondition
        "Someone else is changing the same thing."
        "Wait until that has ended, then run the command again."
    AwsRefused "aws-refused" Other
        "AWS refused a request; its own words are below the error."
        "If the words do not tell what to mend, run the command again with `--verbose` and look at the call that failed."
    GitHubBadKey "github-bad-key" Access
        "GitHub does not accept the App's key: it was deleted there, or never was this App's."
        "Compare its fingerprint with those in the App's settings, and install a listed one with `cargo xtask rotate-key`."
    GitHubUnknownApp "github-unknown-app" Access
        "GitHub knows no App of the id in kiln.toml."
        "Compare `[app]` with the top of the App's settings."
    GitHubNotInstalled "github-not-installed" Access
        "The App is not installed in the organization, or the organization has another name."
        "Install the App, and compare `organization` in kiln.toml with the organization's login."
    GitHubSuspended "github-suspended" Access
        "The App's installation is suspended."
        "An owner of the organization can lift the suspension in its settings."
    GitHubPermission "github-permission" Access
        "The App lacks the permission named in the error."
        "Give it \"Self-hosted runners: read and write\" in its settings, and accept the change in the organization."
    GitHubToken "github-token" Access
        "GitHub does not accept the installation's token any more, or forbids the request."
        "The message below the error is GitHub's; a list of allowed addresses at the organization is the usual cause."
    GitHubClock "github-clock" Other
        "This machine's clock and GitHub's differ by more than GitHub allows."
        "Synchronise the clock (chrony, systemd-timesyncd)."
    GitHubLimited "github-limited" Other
        "GitHub's request limit for the App is used up."
        "Wait for as long as the hint says, then run the command again."
    GitHubUnreachable "github-unreachable" Other
        "No connection to GitHub, no trusted one, or no answer in time."
        "Is there a way out to GitHub from here, and does `[github]` in kiln.toml name the host?"
    GitHubRefused "github-refused" Other
        "GitHub refused a request or answered with what its API does not promise."
        "The message is GitHub's; its status page tells of incidents. Give the request's id to GitHub's support."
    KeyNotInstalled "key-not-installed" Precondition
        "The App's private key is not in the store from which instances use it."
        "Run `cargo xtask rotate-key --pem FILE` first: its first run installs the key."
    ImageNotRecorded "image-not-recorded" Precondition
        "No image has been baked for this fleet."
        "Run `cargo xtask ami` first: it bakes, tests and records it."
    ImageGone "image-gone" Precondition
        "The recorded image was removed, or can't be launched."
        "Run `cargo xtask ami`: it bakes the image anew and records it."
    StackBroken "stack-broken" Precondition
        "A stack is in a state in which CloudFormation takes no update."
        "The hint has the command that mends it; the reason of the first resource that failed is in the error."
    StackFailed "stack-failed" Failed
        "A stack's change failed, and CloudFormation went back to the state before, which still serves."
        "Mend the reason that the error names (of the first resource that failed; the rest is consequence), then run the command again."
    StackDrifted "stack-drifted" Failed
        "What a stack should hold is not there: something was removed or changed without it."
        "`aws cloudformation detect-stack-drift` shows what; put it back, or delete the stack and deploy anew."
    BuildFailed "build-failed" Failed
        "The bake ended without an AMI. Nothing was recorded; the image before still serves."
        "The error names the phase and step; its log is in CloudWatch under `/aws/imagebuilder/`. The next run starts a new build."
    RefreshFailed "refresh-failed" Failed
        "The instance refresh ended in failure, and Auto Scaling went back to the version before, which still serves."
        "Look at a new instance's journal, or at its system log in the EC2 console: why did it not register?"
    RunnersOffline "runners-offline" Failed
        "The roll-out is done, but not every instance has a runner online at GitHub."
        "Look at the named instances' journals, or at their system logs in the EC2 console."
    StackBusy "stack-busy" Timeout
        "A stack's change took longer than the bound."
        "Run the same command again: it waits on, and goes on from there."
    BuildSlow "build-slow" Timeout
        "The bake took longer than the bound."
        "Run the same command again: it waits for this very build."
    RefreshSlow "refresh-slow" Timeout
        "The instance refresh took longer than the longest drain and an hour."
        "Run the same command again: it waits for this very refresh. A job that does not end is the usual cause."
    Due "due" Due
        "Nothing failed: something that is pinned or in use has to be renewed within 14 days, or is overdue."
        "What the hint names: for a runner `cargo xtask pin`, then `cargo xtask ami` and `cargo xtask deploy`; for the App's key \
         `cargo xtask rotate-key --pem FILE` with a new one."
    Configuration "configuration" Configuration
        "kiln.toml, a flag's value or a file is wrong, in a way that has no name of its own."
        "The message tells what."
    Access "access" Access
        "Credentials were refused, or lack a permission, in a way that has no name of its own."
        "The message tells whose."
    Precondition "precondition" Precondition
        "Something has to be done first."
        "The hint tells what."
    Failed "failed" Failed
        "What was begun ended in failure; what served before still serves."
        "The message tells why."
    Timeout "timeout" Timeout
        "A bound was reached."
        "Run the same command again: it goes on from there."
    Unforeseen "unforeseen" Other
        "Anything that is not expected to happen."
        "Run the command again; if it stays, run it with `--verbose` and report what is said."
}

impl Code {
    /// The code of a failure that has none of its own.
    pub const fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Configuration => Self::Configuration,
            Kind::Access => Self::Access,
            Kind::Precondition => Self::Precondition,
            Kind::Failed => Self::Failed,
            Kind::Timeout => Self::Timeout,
            Kind::Due => Self::Due,
            Kind::Other => Self::Unforeseen,
        }
    }

    /// The code of a call to AWS that failed.
    pub const fn of_cloud(kind: CloudErrorKind) -> Self {
        match kind {
            CloudErrorKind::Credentials => Self::AwsCredentials,
            CloudErrorKind::AccessDenied => Self::AwsAccessDenied,
            CloudErrorKind::Unreachable => Self::AwsUnreachable,
            CloudErrorKind::Throttled => Self::AwsThrottled,
            CloudErrorKind::Quota => Self::AwsQuota,
            CloudErrorKind::Conflict => Self::AwsConflict,
            CloudErrorKind::NotFound | CloudErrorKind::Invalid | CloudErrorKind::Other => Self::AwsRefused,
        }
    }

    /// The code of a call to GitHub that failed.
    pub const fn of_github(kind: &GitHub) -> Self {
        match kind {
            GitHub::BadKey => Self::GitHubBadKey,
            GitHub::ClockSkew { .. } => Self::GitHubClock,
            GitHub::UnknownApp => Self::GitHubUnknownApp,
            GitHub::NotInstalled => Self::GitHubNotInstalled,
            GitHub::Suspended => Self::GitHubSuspended,
            GitHub::MissingPermission { .. } => Self::GitHubPermission,
            GitHub::Forbidden | GitHub::BadToken => Self::GitHubToken,
            GitHub::RateLimited { .. } => Self::GitHubLimited,
            GitHub::Connect | GitHub::Tls | GitHub::Timeout => Self::GitHubUnreachable,
            _ => Self::GitHubRefused,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No code has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no failure is called `{0}`; `cargo xtask explain` lists all")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(name: &str) -> Result<Self, UnknownCode> {
        Self::ALL.iter().copied().find(|code| code.name() == name).ok_or_else(|| UnknownCode(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_into_an_annotation() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for name in names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
            assert_eq!(name.parse::<Code>().map(Code::name), Ok(name));
        }
    }
}
