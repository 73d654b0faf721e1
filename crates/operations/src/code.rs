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

            /// The kind, and with it the exit code.
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
        "Give its path with `--config FILE` or `KILN_CONFIG`. `cargo xtask init` writes one; docs/kiln.toml in Kiln's repository is a commented example."
    ConfigInvalid "config-invalid" Configuration
        "kiln.toml has problems; all of them are listed, each with line and column."
        "Fix what is marked. An editor that reads `kiln.schema.json` shows the same while you type."
    UnknownFleet "unknown-fleet" Configuration
        "`--fleet` names a fleet that kiln.toml does not have."
        "Take one of the names in the hint, or add a `[fleet.NAME]` table."
    RunnerDigestMissing "runner-digest-missing" Configuration
        "A fleet uses an architecture for which `[runner.sha256]` has no digest."
        "Add the digest of that architecture's archive; it is on the release's page at GitHub."
    RunnerDigestMismatch "runner-digest-mismatch" Configuration
        "The digest that kiln.toml pins for the runner is not the one that GitHub publishes."
        "`cargo xtask pin` writes the published one. Find out first where the pinned one came from."
    NodePinMissing "node-pin-missing" Configuration
        "A fleet uses Amazon Linux 2, and kiln.toml does not pin a Node for each that the runner has."
        "`cargo xtask pin` writes them; or set `base_image = \"amazon-linux-2023\"`."
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
    WrongInstallation "wrong-installation" Configuration
        "`installation_id` in kiln.toml is not the App's installation in the organization."
        "Correct it, or leave it out: Kiln then looks it up."
    SubnetUnfit "subnet-unfit" Configuration
        "A subnet does not exist, is in another VPC, or has no route to the internet."
        "Name other subnets, or let Kiln make the network."
    AnswerInvalid "answer-invalid" Configuration
        "A flag or an answer has a value that does not fit."
        "The message says what fits."
    NoTerminal "no-terminal" Configuration
        "A question has to be answered, and there is no terminal to ask on."
        "Give the flag that the hint names."
    FileExists "file-exists" Configuration
        "A file that would be replaced is there already."
        "Edit it, replace it with `--force`, or write another one."
    FileUnwritable "file-unwritable" Configuration
        "A file could not be written; nothing was changed."
        "The cause is below the error: check the path, its permissions and the disk."
    ShredImpossible "shred-impossible" Configuration
        "`--shred` names a file that can't be overwritten where it lies."
        "Leave `--shred` out, and make sure yourself that no copy of the key stays."
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
        "Is `region` in kiln.toml a region of yours, and does this machine reach AWS (proxy, firewall)?"
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
        "If the words do not say what to fix, run the command again with `--verbose` and look at the call that failed."
    AwsListTooLong "aws-list-too-long" Other
        "AWS's list has more pages than Kiln reads. A list that is cut off is never taken for the whole, so nothing was changed."
        "The error names the list. Remove what is no longer used from it, or report it."
    GitHubBadKey "github-bad-key" Access
        "GitHub does not accept the App's key: it was deleted there, or never was this App's."
        "Compare its fingerprint with those in the App's settings, and install a listed one with `cargo xtask rotate-key`."
    GitHubUnknownApp "github-unknown-app" Access
        "GitHub knows no App of the id in kiln.toml."
        "Compare `[app]` with the top of the App's settings."
    GitHubNotInstalled "github-not-installed" Access
        "The App is not installed in the organization, or the organization has another name."
        "Install the App, and compare `organization` in kiln.toml with the organization's login."
    RunnerGroupPublic "runner-group-public" Precondition
        "A fleet's runner group is open to public repositories: whoever opens a pull request there would run code on its instances."
        "Disallow public repositories in the group's settings; or give `--allow-public-repositories` where that is meant."
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
        "Does this machine reach GitHub, and does `[github]` in kiln.toml name the host?"
    GitHubRefused "github-refused" Other
        "GitHub refused a request or answered with what its API does not promise."
        "The message is GitHub's; its status page reports incidents. Give the request's id to GitHub's support."
    KeyNotInstalled "key-not-installed" Precondition
        "The App's private key is not in the store from which instances use it."
        "Run `cargo xtask rotate-key --pem FILE` first: its first run installs the key."
    KeyUnproved "key-unproved" Other
        "The key in use could not be checked with GitHub."
        "The message says why GitHub gave no answer; run the command again."
    KeyNotSettled "key-not-settled" Timeout
        "The store still signs with the key before, minutes after it was told to use another."
        "Run the same command again: it continues from there."
    SignFailed "sign-failed" Other
        "The store did not sign with the App's key."
        "The cause is below the error. With KMS: may this role call `kms:Sign` for the key's alias, and is the key enabled?"
    NoPreviousKey "no-previous-key" Precondition
        "No former key of the App is kept, so there is none to go back to."
        "Generate a new key in the App's settings and give it with `--pem`: that always works."
    ShredFailed "shred-failed" Other
        "The key is installed, but its file could not be overwritten and removed."
        "Remove the file yourself."
    ImageNotRecorded "image-not-recorded" Precondition
        "No image has been baked for this fleet."
        "Run `cargo xtask ami` first: it bakes, tests and records it."
    ImageGone "image-gone" Precondition
        "The recorded image was removed, or can't be launched."
        "Run `cargo xtask ami`: it bakes the image again and records it."
    ImageForeign "image-foreign" Precondition
        "The image to be rolled out is not one that Kiln baked for this fleet: another account's, or without Kiln's tags."
        "Find out who wrote its id into the parameter. `cargo xtask ami` records the right image; where another account bakes the images, name it as `owner` in `[image_defaults]`."
    ImageResourceForeign "image-resource-foreign" Precondition
        "Image Builder has a component or recipe of Kiln's name and version already, with another content."
        "Find out who made it, delete it, and run `cargo xtask ami` again."
    BakeNetworkUnfit "bake-network-unfit" Precondition
        "Images can't be built in the subnet: it does not exist, or is in another VPC."
        "Name a subnet of this account and region as `network` in `[image_defaults]`, or in the first fleet."
    BakeTypesNotOffered "bake-types-not-offered" Precondition
        "The region, or the subnet's availability zone, offers none of the instance types that images are built on."
        "Name some that it offers as `instance_types` in `[image_defaults]`, or another subnet as `network`."
    NoPreviousImage "no-previous-image" Precondition
        "No image is recorded that served this fleet before, so there is none to roll back to."
        "Change kiln.toml to what is wanted, then run `cargo xtask ami` and `cargo xtask deploy`."
    RunnerUnsupported "runner-unsupported" Precondition
        "The pinned runner could not register, or would get no jobs: GitHub no longer serves that version."
        "`cargo xtask pin` moves kiln.toml to the newest release."
    RunnerReleaseMissing "runner-release-missing" Other
        "GitHub offers the organization no release of the runner for Linux."
        "GitHub's status page reports incidents. On GitHub Enterprise Server: does it reach github.com for its runner releases?"
    DigestNotPublished "digest-not-published" Other
        "No digest is published of a release that `pin` would take."
        "A release is complete some time after it appears: try again later."
    NodeBuildMissing "node-build-missing" Other
        "The mirror of Node's unofficial builds has no build of a major version that the runner needs."
        "Does `node_url` in `[runner]` lead to the builds, or to a complete mirror of them?"
    DownloadFailed "download-failed" Other
        "A public list of releases could not be read."
        "Does this machine reach the address, and does kiln.toml name the right mirror?"
    FleetLocked "fleet-locked" Precondition
        "Another run is working on this fleet; it is named in the error."
        "Wait until it has ended, or give `--lock-wait SECS`. The lock of a run that died ends by itself within 90 seconds."
    LockLost "lock-lost" Precondition
        "Another run took this fleet's lock, because this one could not renew it in time. AWS continues with the step that was under way."
        "See how the other run ends, then run this one again."
    ConsentMissing "consent-missing" Precondition
        "Something that can't be undone needs somebody's agreement, and nobody is there to be asked."
        "Read what the error names. `--yes` agrees to it beforehand."
    ConsentRefused "consent-refused" Precondition
        "Somebody was asked and did not agree. Nothing was changed by that step."
        "Run the command again and agree, or change kiln.toml."
    FleetDraining "fleet-draining" Precondition
        "The fleet is being taken down by `destroy`: its group has no capacity."
        "`cargo xtask destroy --fleet NAME` finishes that; after it, `cargo xtask deploy` creates the fleet."
    GroupSuspended "group-suspended" Precondition
        "Processes of the Auto Scaling group are suspended, by AWS after a day of failed launches or by somebody. Instances can't be replaced."
        "Fix the cause of the failed launches, then run the `aws autoscaling resume-processes` command in the hint, then the same command again."
    GroupMissing "group-missing" Precondition
        "The fleet's stack is there, its Auto Scaling group is not: somebody deleted it."
        "`cargo xtask destroy --fleet NAME`, then `cargo xtask deploy`: no runner of the fleet is left that it would cost."
    NetworkInUse "network-in-use" Precondition
        "The network can't be removed: fleets that kiln.toml does not name use it."
        "Destroy those fleets first, with `--fleet NAME`."
    GitHubNotAsked "github-not-asked" Precondition
        "GitHub could not be asked for its runners, so none was removed."
        "`cargo xtask doctor` shows what keeps GitHub from answering."
    PreconditionsUnmet "preconditions-unmet" Precondition
        "`doctor` found something that keeps the other commands from working."
        "Each finding says how to fix it; run `doctor` again after that."
    MachineUnfit "machine-unfit" Precondition
        "This machine lacks something that booting a machine in it needs."
        "The hint names what to install."
    ToolchainMissing "toolchain-missing" Precondition
        "Rust's standard library for the target is not installed, and rustup could not add it."
        "`rustup target add TARGET`; where rustup can't, install a rustc with its source, from which it is built."
    CheckoutUnfit "checkout-unfit" Precondition
        "No version can be published from this checkout."
        "The hint names what to commit or change."
    StackBroken "stack-broken" Precondition
        "A stack is in a state in which CloudFormation takes no update."
        "The hint has the command that fixes it; the reason of the first resource that failed is in the error."
    StackFailed "stack-failed" Failed
        "A stack's change failed. CloudFormation went back to the state before; of a first creation nothing serves."
        "Fix the reason that the error names (of the first resource that failed; the rest is consequence), then run the command again."
    StackDrifted "stack-drifted" Failed
        "What a stack should hold is not there: something was removed or changed without it."
        "`aws cloudformation detect-stack-drift` shows what; put it back, or delete the stack and deploy again."
    BuildFailed "build-failed" Failed
        "The bake ended without an AMI. Nothing was recorded, and no image from before was touched."
        "The error names the phase and step; its log is in CloudWatch under `/aws/imagebuilder/`. The next run starts a new build."
    ImageCopyMissing "image-copy-missing" Failed
        "The build ended well, but names no copy of the image in a region of `copy_to`."
        "Image Builder's console shows what became of the distribution; run the command again."
    RefreshFailed "refresh-failed" Failed
        "The instance refresh ended in failure, and Auto Scaling went back to the version before, which still serves."
        "Look at a new instance's journal, or at its system log in the EC2 console: why did it not register?"
    RefreshCancelled "refresh-cancelled" Failed
        "Somebody cancelled the instance refresh. Whatever was in service then still serves."
        "The same command again continues; `cargo xtask deploy --rollback` goes back."
    LaunchesFail "launches-fail" Failed
        "New instances can't be launched, or end before their runner is registered: two in a row, for the reason in the error."
        "Fix that reason and run the same command again. The instance's own last lines are in the error where EC2 has them."
    RunnersOffline "runners-offline" Failed
        "The rollout is done, but not every instance has a runner online at GitHub."
        "Look at the named instances' journals, or at their system logs in the EC2 console."
    StackBusy "stack-busy" Timeout
        "A stack's change took longer than the timeout."
        "Run the same command again: it waits on, and continues from there."
    BuildSlow "build-slow" Timeout
        "The bake took longer than the timeout."
        "Run the same command again: it waits for this very build."
    RefreshSlow "refresh-slow" Timeout
        "The instance refresh made no progress for as long as the longest drain and an hour."
        "Run the same command again: it waits for this very refresh. A job that does not end is the usual cause."
    DrainSlow "drain-slow" Timeout
        "Instances were still there after the longest job and a margin."
        "Run the same command again: it waits on. `--now` does not wait, and jobs fail. An instance that is protected from scale-in does not leave by itself."
    Due "due" Due
        "Nothing failed: something that is pinned or in use has to be renewed within 14 days, or is overdue."
        "What the hint names: for a runner `cargo xtask pin`, then `cargo xtask ami` and `cargo xtask deploy`; for the App's key \
         `cargo xtask rotate-key --pem FILE` with a new one."
    Unforeseen "unforeseen" Other
        "Anything that is not expected to happen."
        "Run the command again; if it stays, run it with `--verbose` and report what is said."
}

impl Code {
    /// The code of a call to AWS that failed.
    pub const fn of_cloud(kind: CloudErrorKind) -> Self {
        match kind {
            CloudErrorKind::Credentials => Self::AwsCredentials,
            CloudErrorKind::AccessDenied => Self::AwsAccessDenied,
            CloudErrorKind::Unreachable => Self::AwsUnreachable,
            CloudErrorKind::Throttled => Self::AwsThrottled,
            CloudErrorKind::Quota => Self::AwsQuota,
            CloudErrorKind::Conflict => Self::AwsConflict,
            CloudErrorKind::TooLong => Self::AwsListTooLong,
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
