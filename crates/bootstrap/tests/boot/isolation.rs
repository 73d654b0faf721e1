//! What a job could get at.

use std::path::PathBuf;

use kiln_rehearsal::github::{Conclusion, JobSpec, JobState, Step};
use kiln_rehearsal::machine::runner_ids;
use serde_json::json;

use crate::support::{SOON, there};

/// On this machine the runner's user reaches the stand-in, as on an instance without the guard.
#[tokio::test]
async fn an_instance_whose_jobs_reach_the_metadata_service_refuses_to_serve() {
    let there = there().await;
    let mut config = there.config();
    config["job_metadata_access"] = json!("blocked");
    there.boot(&config).await.given_up("the runner's user reaches the metadata service").await;
    assert_eq!(there.github.count("POST", "/registration-token"), 0, "it does not even register");
}

/// A job looks for whatever could make it the App: in every process's arguments and environment, and in every file that it
/// may read, as the runner's user. (The patterns must not find the script itself. An ephemeral runner's own configuration
/// stays in its listener's first environment; it is good for that one runner, whose job this is.)
#[tokio::test]
async fn a_job_finds_neither_key_nor_token() {
    let script = r#"
        for process in /proc/[0-9]*; do
            for file in cmdline environ; do
                tr '\0' '\n' <"$process/$file" 2>/dev/null
            done
        done | grep -E -e 'gh[s]_|ey[J][A-Za-z0-9_-]+\.eyJ|PRIVATE KE[Y]|RUNNER_INPU[T]_TOKEN' && exit 9
        find ROOT -type f -readable -exec grep -l -E -e 'gh[s]_|-----BEGI[N]' {} + 2>/dev/null | grep -v Runner.Listener && exit 8
        id -u
        echo "https_proxy=$https_proxy"
    "#;
    for ephemeral in [false, true] {
        let there = there().await;
        let mut config = if ephemeral { there.ephemeral() } else { there.config() };
        config["environment"] = json!({ "https_proxy": "http://proxy:3128" });
        let mut booted = there.boot(&config).await;
        booted.online().await;
        let root: PathBuf = there.path("");
        let script = script.replace("ROOT", root.to_str().unwrap());
        let job = there.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run(script)));
        let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
        let JobState::Completed { conclusion, output, .. } = there.github.wait_job(job, ended, SOON).await.unwrap()
        else {
            panic!("it has ended")
        };
        assert_eq!(conclusion, Conclusion::Success, "{output}");
        assert!(output.contains("https_proxy=http://proxy:3128\n"), "{output}");
        assert!(output.contains(&format!("{}\n", runner_ids().0)), "{output}");
        let said = format!("{:?}", booted.log);
        assert!(!said.contains("ghs_") && !said.contains("eyJ"), "{said}");
    }
}
