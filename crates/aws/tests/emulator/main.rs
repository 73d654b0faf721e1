//! The ports on the real SDK, over real sockets, against the local AWS of the rehearsal.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod failures;
mod images;
mod keys;
mod prune;
mod stacks;

use std::path::Path;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sts::config::Credentials;
use kiln_config::model::Region;
use kiln_stand_ins::aws::{Aws as Local, AwsOptions};
use tempfile::TempDir;

/// A local AWS and the ports on it.
struct Fixture {
    local: Local,
    cloud: kiln_aws::Aws,
    _directory: TempDir,
}

async fn fixture() -> Fixture {
    let ministack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/ministack");
    assert!(ministack.exists(), "the emulator is not installed: `cargo xtask setup` installs it");
    let directory = tempfile::tempdir().unwrap();
    let options = AwsOptions { directory: directory.path().join("aws"), ministack };
    let local = Local::start(options).await.unwrap();
    let cloud = kiln_aws::Aws::new(&region(&local), &config(&local.endpoint_url()).await);
    Fixture { local, cloud, _directory: directory }
}

fn region(local: &Local) -> Region {
    local.region().parse().unwrap()
}

/// The pipeline's configuration, without this process's environment.
async fn config(endpoint: &str) -> SdkConfig {
    let pipeline = Credentials::new("AKIAPIPELINE00000000", "pipeline", None, None, "test");
    aws_config::defaults(BehaviorVersion::latest())
        .region("eu-central-1")
        .endpoint_url(endpoint)
        .credentials_provider(pipeline)
        .load()
        .await
}
