//! What one job leaves to the next.

use std::os::unix::fs::symlink;
use std::path::Path;

use kiln_stand_ins::github::{Conclusion, JobId, JobSpec, JobState, Step};

use crate::support::{SOON, There, there};

/// A machine with the image's hooks.
async fn with_hooks() -> There {
    let there = there().await;
    for name in ["job-started.sh", "job-completed.sh"] {
        let path = format!("{}/../../ami/files/opt/kiln/hooks/{name}", env!("CARGO_MANIFEST_DIR"));
        there.write(&format!("opt/kiln/hooks/{name}"), &std::fs::read_to_string(path).unwrap(), 0o755);
    }
    std::fs::create_dir_all(there.path("usr/local/bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_kiln-bootstrap"), there.path("usr/local/bin/kiln-bootstrap")).unwrap();
    there.write("etc/kiln/least-free-mib", "1\n", 0o644);
    there
}

async fn ended(there: &There, job: JobId) -> (Conclusion, String) {
    let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
    match there.github.wait_job(job, ended, SOON).await.unwrap() {
        JobState::Completed { conclusion, output, .. } => (conclusion, output),
        state => panic!("{state:?}"),
    }
}

fn script(text: &str) -> JobSpec {
    JobSpec::new(["linux-x64"]).step(Step::Run(text.to_owned()))
}

/// Containers write as root, caches are read-only, and a job can leave links to anywhere.
#[tokio::test]
async fn a_job_begins_with_an_empty_workspace_whoever_wrote_to_it() {
    let there = with_hooks().await;
    let mut booted = there.boot(&there.config()).await;
    booted.online().await;
    let outside = there.path("outside");
    there.write("outside/kept", "x", 0o644);
    for turn in 0..5 {
        let dirty = format!(
            "[[ -z $(ls -A) ]] || {{ ls -lA; exit 1; }}; mkdir -p a/b && echo x >a/b/c && chmod 500 a/b; \
             ln -s '{}' link; mkdir -p ../../_temp/_github_home/.cache; touch ready",
            outside.display()
        );
        let job = there.github.queue_job(script(&dirty).step(Step::Hold));
        let workspace = there.path("opt/actions-runner/_work/rehearsal/rehearsal");
        let there_yet = || workspace.join("ready").exists().then_some(());
        there.github.until(SOON, "the job's files", |_| there_yet()).await.unwrap();
        // As a container does: these belong to who runs this, which is root in most places.
        std::fs::create_dir_all(workspace.join("of-root/deep")).unwrap();
        std::fs::write(workspace.join("of-root/deep/file"), "x").unwrap();
        std::fs::write(there.path("opt/actions-runner/_work/_temp/_github_home/.cache/of-root"), "x").unwrap();
        there.github.release_job(job);
        let (conclusion, output) = ended(&there, job).await;
        assert_eq!(conclusion, Conclusion::Success, "turn {turn}: {output}");
        assert_eq!(std::fs::read_dir(&workspace).unwrap().count(), 0, "turn {turn}: {output}");
        assert!(!there.path("opt/actions-runner/_work/_temp/_github_home").exists());
        assert!(Path::new(&outside).join("kept").exists(), "a link was followed");
    }
    assert_eq!(booted.stop().await, Some(0));
}

/// One that goes on would fail each job it gets, and being idle at once get most of them.
#[tokio::test]
async fn an_instance_with_a_full_disk_fails_one_job_and_leaves() {
    let there = with_hooks().await;
    there.write("etc/kiln/least-free-mib", "99999999999\n", 0o644);
    let mut booted = there.boot(&there.config()).await;
    booted.online().await;
    let jobs = [there.github.queue_job(script("true")), there.github.queue_job(script("true"))];
    let (conclusion, output) = ended(&there, jobs[0]).await;
    assert_eq!(conclusion, Conclusion::Failure);
    assert!(output.contains("::error title=Disk nearly full::") && output.contains("are wanted"), "{output}");
    let said = booted.said("this instance is not fit to serve: leaving").await;
    assert!(said["why"].as_str().unwrap().contains("MiB are free at "), "{said}");
    booted.said("leaving").await;
    booted.end().await;
    assert_eq!(there.runner(), None);
}

/// It has not asked to be replaced for lack of use: the group puts another one in its place.
#[tokio::test]
async fn a_group_replaces_an_instance_with_a_full_disk() {
    let there = with_hooks().await;
    there.write("etc/kiln/least-free-mib", "99999999999\n", 0o644);
    let imds = there.imds(Some(There::in_group(there.config(), 300).to_string())).await;
    let (mut booted, aws) = there.boot_in_group(imds).await;
    booted.said("in service").await;
    let (conclusion, _) = ended(&there, there.github.queue_job(script("true"))).await;
    assert_eq!(conclusion, Conclusion::Failure);
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    assert_eq!((aws.count("TerminateInstanceInAutoScalingGroup"), aws.state()), (1, "Terminating:Proceed".to_owned()));
    assert_eq!(there.runner(), None);
}
