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
        "Give its path with `--config FILE` or `KILN_CONFIG`. `cargo xtask init` writes one; docs/kiln.toml in Kiln's repository is an example with comments."
    ConfigInvalid "config-invalid" Configuration
        "kiln.toml has errors. All of them are listed, each with its line and column."
        "Fix the marked places. An editor that reads `kiln.schema.json` shows the same errors as you type."
    AppNotRegistered "app-not-registered" Precondition
        "`init --register` did not come to an App that is registered and installed."
        "Run it again; or register the App by hand, with the link that `cargo xtask init` prints, and give its client id."
    VersionDiffers "version-differs" Configuration
        "kiln.toml is for another version of Kiln than the one that runs."
        "Install the version that `[kiln] version` names; or, to upgrade, read the changes and then write the version that runs there."
    PlaceholderLeft "placeholder-left" Configuration
        "kiln.toml, or a flag, still has a value of the example, which belongs to nobody."
        "Put your own in its place, or have `cargo xtask init` write the file."
    UnknownFleet "unknown-fleet" Configuration
        "`--fleet` names a fleet that kiln.toml does not have."
        "Use one of the names in the hint, or add a `[fleet.NAME]` table."
    RunnerDigestMissing "runner-digest-missing" Configuration
        "A fleet uses an architecture for which `[runner.sha256]` has no digest."
        "Add the digest of that architecture's archive; the release's page at GitHub lists it."
    RunnerDigestMismatch "runner-digest-mismatch" Configuration
        "The runner digest in kiln.toml differs from the one that GitHub publishes."
        "First find out where the pinned digest came from. Then `cargo xtask pin` writes the published one."
    NodePinMissing "node-pin-missing" Configuration
        "A fleet uses Amazon Linux 2, and kiln.toml lacks a pinned Node build for a Node major version of the runner."
        "`cargo xtask pin` writes them; or set `base = \"amazon-linux-2023\"` in the image's table."
    BootConfigTooLarge "boot-config-too-large" Configuration
        "The boot configuration of an instance is too large for a stack parameter."
        "Use fewer or shorter labels and variables."
    KeyFileUnreadable "key-file-unreadable" Configuration
        "The file given with `--pem` could not be read."
        "Give the .pem file that GitHub downloaded when the key was made, or `-` for standard input."
    KeyFileInvalid "key-file-invalid" Configuration
        "The file given with `--pem` does not contain a GitHub App's private key."
        "Generate a private key in the App's settings and give the downloaded file unchanged."
    AppMismatch "app-mismatch" Configuration
        "The key is valid, but belongs to another App."
        "Compare `[app]` in kiln.toml with the App in whose settings the key was generated."
    InstallationMismatch "installation-mismatch" Configuration
        "`installation_id` in kiln.toml is not the App's installation in the organization."
        "Correct it, or remove it: Kiln then looks it up."
    SubnetNotUsable "subnet-not-usable" Configuration
        "A subnet does not exist, is in another VPC, or has no route to the internet."
        "Name other subnets, or let Kiln make the network (`network = \"create-vpc\"`)."
    AnswerInvalid "answer-invalid" Configuration
        "A flag or an answer has an invalid value."
        "The message says which values are valid."
    NoTerminal "no-terminal" Configuration
        "The command needs an answer, and there is no terminal to ask on."
        "Give the flag that the hint names."
    FileExists "file-exists" Configuration
        "The command would overwrite a file that already exists."
        "Edit the file, overwrite it with `--force`, or choose another path."
    FileUnwritable "file-unwritable" Configuration
        "A file could not be written; nothing was changed."
        "The cause is below the error: check the path, its permissions and the disk."
    ShredImpossible "shred-impossible" Configuration
        "The file given with `--shred` can't be overwritten in place."
        "Omit `--shred`, and make sure yourself that no copy of the key remains."
    BootstrapInvalid "bootstrap-invalid" Configuration
        "The file given with `--bootstrap` is unreadable, not static, or for another architecture."
        "Omit `--bootstrap`: the command then builds the binary."
    BootstrapMissing "bootstrap-missing" Configuration
        "This `kiln` was built without the instance's binaries, and does not run in a checkout that it could build them from."
        "Install a released `kiln`, run it in a checkout of Kiln, or give `--bootstrap FILE`."
    AwsCredentials "aws-credentials" Access
        "No AWS credentials were found, or AWS does not accept them (expired, wrong)."
        "Provide credentials in one of the usual ways and check them with `aws sts get-caller-identity`. In a pipeline, check that the job has `id-token: write` and that this repository may assume the role."
    AwsAccessDenied "aws-access-denied" Access
        "The AWS credentials are valid, but lack the permission for the action named below the error."
        "Grant it to the role that the command runs as."
    AwsUnreachable "aws-unreachable" Other
        "AWS could not be reached."
        "Check that `region` in kiln.toml exists and is enabled in your account, and that this machine can reach AWS (proxy, firewall)."
    AwsThrottled "aws-throttled" Other
        "AWS throttled a request, eight times in a row."
        "Run the same command again: it resumes where it stopped."
    AwsQuota "aws-quota" Precondition
        "An account quota is used up."
        "Request an increase of the named quota (Service Quotas), then run the command again."
    AwsConflict "aws-conflict" Precondition
        "Another caller is changing the same resource."
        "Wait until the other change has finished, then run the command again."
    AwsRejected "aws-rejected" Other
        "AWS refused a request; AWS's message is below the error."
        "If the message does not say what to fix, run the command again with `--verbose` and check the call that failed."
    AwsListTooLong "aws-list-too-long" Other
        "A list from AWS has more pages than Kiln reads. Kiln never acts on an incomplete list, so nothing was changed."
        "The error names the list. Remove unused entries from it, or open an issue."
    GitHubBadKey "github-bad-key" Access
        "GitHub does not accept the App's key: it was deleted there, or belongs to another App."
        "Compare its fingerprint with those in the App's settings, and install one of the listed keys with `cargo xtask rotate-key`."
    GitHubUnknownApp "github-unknown-app" Access
        "GitHub has no App with the id in kiln.toml."
        "Compare `[app]` with the ids at the top of the App's settings."
    GitHubNotInstalled "github-not-installed" Access
        "The App is not installed in the organization, or the organization has another name."
        "Install the App, and compare `organization` in kiln.toml with the organization's login."
    RunnerGroupPublic "runner-group-public" Precondition
        "A fleet's runner group allows public repositories: anyone who opens a pull request there could run code on its instances."
        "Disallow public repositories in the group's settings; or give `--allow-public-repositories` if that is intended."
    GitHubSuspended "github-suspended" Access
        "The App's installation is suspended."
        "An owner of the organization can unsuspend it in the organization's settings."
    GitHubPermission "github-permission" Access
        "The App lacks the permission that the error names."
        "Grant \"Self-hosted runners: read and write\" in the App's settings, and accept the change in the organization."
    GitHubToken "github-token" Access
        "GitHub no longer accepts the installation token, or forbids the request."
        "The message below the error is GitHub's. The usual cause is the organization's IP allow list."
    GitHubClock "github-clock" Other
        "This machine's clock and GitHub's differ by more than GitHub allows."
        "Synchronise this machine's clock (chrony, systemd-timesyncd)."
    GitHubRateLimited "github-rate-limited" Other
        "The App has used up GitHub's API rate limit."
        "Wait as long as the hint says, then run the command again."
    GitHubUnreachable "github-unreachable" Other
        "GitHub could not be reached, its certificate is not trusted, or it did not answer in time."
        "Check that this machine can reach GitHub, and that `[github]` in kiln.toml names the right host."
    GitHubRejected "github-rejected" Other
        "GitHub refused a request, or sent a response that its API does not document."
        "The message is GitHub's; GitHub's status page reports incidents. Include the request id if you contact GitHub's support."
    KeyNotInstalled "key-not-installed" Precondition
        "The App's private key is not in the key store that instances use."
        "Run `cargo xtask rotate-key --pem FILE` first: its first run installs the key."
    KeyUnproved "key-unproved" Other
        "The key in use could not be checked with GitHub."
        "The message says why GitHub did not answer. Run the command again."
    KeyNotSettled "key-not-settled" Timeout
        "The key store still signs with the former key, minutes after Kiln switched it to another one."
        "Run the same command again: it resumes there."
    SignFailed "sign-failed" Other
        "The key store did not sign with the App's key."
        "The cause is below the error. With KMS, check that this role may call `kms:Sign` for the key's alias and that the key is enabled."
    NoPreviousKey "no-previous-key" Precondition
        "The key store has no former key of the App, so there is none to roll back to."
        "Generate a new key in the App's settings and install it with `--pem`: that always works."
    ShredFailed "shred-failed" Other
        "The key is installed, but its file could not be overwritten and removed."
        "Remove the file yourself."
    ImageNotRecorded "image-not-recorded" Precondition
        "No image has been baked for this fleet."
        "Run `cargo xtask ami` first: it bakes, tests and records it."
    ImageUnavailable "image-unavailable" Precondition
        "The recorded image was removed, or can't be launched."
        "Run `cargo xtask ami`: it bakes the image again and records it."
    ImageForeign "image-foreign" Precondition
        "Kiln did not bake the image to roll out for this fleet: it belongs to another account, or lacks Kiln's tags."
        "Find out who wrote its id into the parameter. `cargo xtask ami` records the right image. If another account bakes the images, set it as `owner` in `[image_defaults]`."
    ImageResourceForeign "image-resource-foreign" Precondition
        "Image Builder already has a component or recipe with Kiln's name and version, but with different content."
        "Find out who created it, delete it, and run `cargo xtask ami` again."
    BakeNetworkNotUsable "bake-network-not-usable" Precondition
        "Images can't be built in the subnet: it does not exist, or is in another VPC."
        "Set a subnet of this account and region as `network` in `[image_defaults]`, or in the first fleet."
    BaseUnfit "base-unfit" Precondition
        "What an image's table names as `base` can't be built on: it is missing, of another architecture, or too large."
        "Name an AMI of this region and of the image's `architecture`, or raise `volume_gib`."
    BakeTypesNotOffered "bake-types-not-offered" Precondition
        "The region, or the subnet's availability zone, offers none of the instance types that images are built on."
        "Set `instance_types` in `[image_defaults]` to types that are offered there, or set another subnet as `network`."
    NoPreviousImage "no-previous-image" Precondition
        "No previous image of this fleet is recorded, so there is none to roll back to."
        "Change kiln.toml as needed, then run `cargo xtask ami` and `cargo xtask deploy`."
    RunnerUnsupported "runner-unsupported" Precondition
        "The pinned runner can't register or would get no jobs: GitHub no longer supports that version."
        "`cargo xtask pin` updates kiln.toml to the newest release."
    RunnerReleaseMissing "runner-release-missing" Other
        "GitHub offers the organization no release of the runner for Linux."
        "GitHub's status page reports incidents. With GitHub Enterprise Server, check that the server can reach github.com for its runner releases."
    DigestNotPublished "digest-not-published" Other
        "The release that `pin` would use has no published digest yet."
        "A release is complete only some time after it appears. Try again later."
    NodeBuildMissing "node-build-missing" Other
        "The mirror of Node's unofficial builds has no build of a major version that the runner needs."
        "Check that `node_url` in `[runner]` points to the builds, or to a complete mirror of them."
    DownloadFailed "download-failed" Other
        "A public list of releases could not be read."
        "Check that this machine can reach the address, and that kiln.toml names the right mirror."
    FleetLocked "fleet-locked" Precondition
        "Another run holds this fleet's lock; the error names it."
        "Wait until that run has finished, or give `--lock-wait SECS`. The lock of a run that was killed expires within 90 seconds."
    LockLost "lock-lost" Precondition
        "Another run took this fleet's lock, because this run could not renew it in time. AWS continues the step that was in progress."
        "Wait for the other run to finish, then run this command again."
    ConsentMissing "consent-missing" Precondition
        "A step that can't be undone needs confirmation, and there is no terminal to ask on."
        "Read the step that the error names. `--yes` confirms it in advance."
    ConsentRefused "consent-refused" Precondition
        "The user declined the confirmation. That step changed nothing."
        "Run the command again and confirm, or change kiln.toml."
    FleetDraining "fleet-draining" Precondition
        "`destroy` is deleting the fleet: the capacity of its group is zero."
        "`cargo xtask destroy --fleet NAME` finishes the deletion. After that, `cargo xtask deploy` creates the fleet again."
    GroupSuspended "group-suspended" Precondition
        "Processes of the Auto Scaling group are suspended, either by a person or by AWS after a day of failed launches. Instances can't be replaced."
        "Fix the cause of the failed launches, run the `aws autoscaling resume-processes` command in the hint, then run the same command again."
    GroupMissing "group-missing" Precondition
        "The fleet's stack exists, but its Auto Scaling group was deleted outside the stack."
        "Run `cargo xtask destroy --fleet NAME`, then `cargo xtask deploy`. The fleet has no runners left, so no job is lost."
    FleetKindChanged "fleet-kind-changed" Precondition
        "The fleet has a group and kiln.toml makes it on-demand, or the other way round. One kind can't become the other."
        "`cargo xtask destroy --fleet NAME` waits for its jobs. Then run `cargo xtask deploy`. Or give the new fleet another name."
    ScaleSetFixed "scale-set-fixed" Precondition
        "kiln.toml has other labels or another runner group than the on-demand fleet's scale set at GitHub, and these can't be changed."
        "Add a fleet with another name and the new labels, and destroy the old fleet when its jobs have moved."
    ControlUnreadable "control-unreadable" Precondition
        "A newer version of Kiln wrote the documents of the controller of on-demand fleets."
        "Run the command with the version that deployed last, or a newer one."
    NetworkInUse "network-in-use" Precondition
        "The network can't be deleted: fleets that are not in kiln.toml use it."
        "Destroy those fleets first, with `--fleet NAME`."
    GitHubNotAsked "github-not-asked" Precondition
        "GitHub did not list the runners, so none was deleted."
        "`cargo xtask doctor` shows why GitHub does not answer."
    PreconditionsUnmet "preconditions-unmet" Precondition
        "`doctor` found a problem that prevents other commands from working."
        "Each finding has a hint with the fix. Run `doctor` again afterwards."
    MachineNotReady "machine-not-ready" Precondition
        "This machine lacks a program that the boot in QEMU needs."
        "The hint names what to install."
    ToolchainMissing "toolchain-missing" Precondition
        "Rust's standard library for the target is not installed, and rustup could not add it."
        "Run `rustup target add TARGET`. Without rustup, install a rustc with its source; the command then builds the library from it."
    CheckoutNotReady "checkout-not-ready" Precondition
        "No version can be published from this checkout."
        "The hint names what to commit or change."
    StackNotUpdatable "stack-not-updatable" Precondition
        "A stack is in a state that CloudFormation can't update."
        "The hint has the command that fixes it. The error has the reason of the first resource that failed."
    StackFailed "stack-failed" Failed
        "A stack operation failed. CloudFormation rolled the stack back; after a failed creation no instance is in service."
        "Fix the cause that the error names, then run the command again. It is the first resource that failed; later failures follow from it."
    StackDrifted "stack-drifted" Failed
        "A stack's resource is missing: it was deleted or changed outside CloudFormation."
        "`aws cloudformation detect-stack-drift` shows the difference. Restore the resource, or delete the stack and deploy again."
    BuildFailed "build-failed" Failed
        "The bake failed and made no AMI. Nothing was recorded, and earlier images are unchanged."
        "The error names the phase and step; its log is in CloudWatch under `/aws/imagebuilder/`. The next run starts a new build."
    ImageCopyMissing "image-copy-missing" Failed
        "The build succeeded, but lists no copy of the image in a region of `copy_to`."
        "Check the distribution in Image Builder's console, then run the command again."
    RefreshFailed "refresh-failed" Failed
        "The instance refresh failed, and Auto Scaling rolled back to the previous version, which is in service."
        "Check a new instance's journal, or its system log in the EC2 console, for the reason why it did not register."
    RefreshCancelled "refresh-cancelled" Failed
        "The instance refresh was cancelled. The instances that were in service then are still in service."
        "Run the same command again to resume, or `cargo xtask deploy --rollback` to roll back."
    LaunchesFail "launches-fail" Failed
        "Two new instances in a row failed to launch, or terminated before their runner registered, for the reason in the error."
        "Fix the cause and run the same command again. The error includes the last lines of the instance's log, if EC2 has them."
    RunnersOffline "runners-offline" Failed
        "The rollout is done, but not every instance has a runner online at GitHub."
        "Check the journals of the named instances, or their system logs in the EC2 console."
    StackTimeout "stack-timeout" Timeout
        "A stack operation took longer than the timeout."
        "Run the same command again: it keeps waiting, and resumes there."
    BuildTimeout "build-timeout" Timeout
        "The bake took longer than the timeout."
        "Run the same command again: it waits for the same build."
    RefreshTimeout "refresh-timeout" Timeout
        "The instance refresh made no progress for the longest drain plus one hour."
        "Run the same command again: it waits for the same refresh. The usual cause is a job that does not end."
    ControllerSilent "controller-silent" Timeout
        "The controller of on-demand fleets did not report that it serves the fleet. The stacks and the control document are as wanted."
        "Read the journal of the controller's instance, or its system log in the EC2 console. Then run the same command again."
    DrainTimeout "drain-timeout" Timeout
        "Instances still existed after the longest drain plus a margin."
        "Run the same command again: it keeps waiting. `--now` does not wait, and jobs fail. An instance with scale-in protection does not terminate by itself."
    Due "due" Due
        "Nothing failed: a pinned version, or a version or key in use, must be renewed within 14 days or is overdue."
        "For a runner: `cargo xtask pin`, then `cargo xtask ami` and `cargo xtask deploy`. For the App's key: \
         `cargo xtask rotate-key --pem FILE` with a new key."
    Internal "internal" Other
        "An unexpected error."
        "Run the command again. If the error persists, run it with `--verbose` and open an issue with the output."
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
            CloudErrorKind::NotFound | CloudErrorKind::Invalid | CloudErrorKind::Other => Self::AwsRejected,
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
            GitHub::RateLimited { .. } => Self::GitHubRateLimited,
            GitHub::Connect | GitHub::Tls | GitHub::Timeout => Self::GitHubUnreachable,
            _ => Self::GitHubRejected,
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
