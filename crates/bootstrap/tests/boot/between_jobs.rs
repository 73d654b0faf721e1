//! What one job leaves to the next.

use std::os::unix::fs::symlink;
use std::path::Path;

use kiln_stand_ins::github::{Conclusion, JobId, JobSpec, JobState, Step};

use crate::support::{Fixture, SOON, fixture};

/// A machine with the image's hooks.
async fn with_hooks() -> Fixture {
    let fixture = fixture().await;
    for name in ["job-started.sh", "job-completed.sh"] {
        let path = format!("{}/../../ami/files/opt/kiln/hooks/{name}", env!("CARGO_MANIFEST_DIR"));
        fixture.write(&format!("opt/kiln/hooks/{name}"), &std::fs::read_to_string(path).unwrap(), 0o755);
    }
    std::fs::create_dir_all(fixture.path("usr/local/bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_kiln-bootstrap"), fixture.path("usr/local/bin/kiln-bootstrap")).unwrap();
    fixture.write("etc/kiln/least-free-mib", "1\n", 0o644);
    fixture
}

async fn ended(fixture: &Fixture, job: JobId) -> (Conclusion, String) {
    let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
    match fixture.github.wait_job(job, ended, SOON).await.unwrap() {
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
    let fixture = with_hooks().await;
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    let environment = fixture.path("outside");
    fixture.write("outside/kept", "x", 0o644);
    for turn in 0..5 {
        let dirty = format!(
            "[[ -z $(ls -A) ]] || {{ ls -lA; exit 1; }}; mkdir -p a/b && echo x >a/b/c && chmod 500 a/b; \
             ln -s '{}' link; mkdir -p ../../_temp/_github_home/.cache; touch ready",
            environment.display()
        );
        let job = fixture.github.queue_job(script(&dirty).step(Step::Hold));
        let workspace = fixture.path("opt/actions-runner/_work/rehearsal/rehearsal");
        let there_yet = || workspace.join("ready").exists().then_some(());
        fixture.github.until(SOON, "the job's files", |_| there_yet()).await.unwrap();
        // As a container does: these belong to who runs this, which is root in most places.
        std::fs::create_dir_all(workspace.join("of-root/deep")).unwrap();
        std::fs::write(workspace.join("of-root/deep/file"), "x").unwrap();
        std::fs::write(fixture.path("opt/actions-runner/_work/_temp/_github_home/.cache/of-root"), "x").unwrap();
        fixture.github.release_job(job);
        let (conclusion, output) = ended(&fixture, job).await;
        assert_eq!(conclusion, Conclusion::Success, "turn {turn}: {output}");
        assert_eq!(std::fs::read_dir(&workspace).unwrap().count(), 0, "turn {turn}: {output}");
        assert!(!fixture.path("opt/actions-runner/_work/_temp/_github_home").exists());
        assert!(Path::new(&environment).join("kept").exists(), "a link was followed");
    }
    assert_eq!(booted.stop().await, Some(0));
}

/// One that goes on would fail each job it gets, and being idle at once get most of them.
#[tokio::test]
async fn an_instance_with_a_full_disk_fails_one_job_and_leaves() {
    let fixture = with_hooks().await;
    fixture.write("etc/kiln/least-free-mib", "99999999999\n", 0o644);
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    let jobs = [fixture.github.queue_job(script("true")), fixture.github.queue_job(script("true"))];
    let (conclusion, output) = ended(&fixture, jobs[0]).await;
    assert_eq!(conclusion, Conclusion::Failure);
    assert!(output.contains("::error title=Disk nearly full::") && output.contains("are wanted"), "{output}");
    let said = booted.said("this instance is not fit to serve: leaving").await;
    assert!(said["why"].as_str().unwrap().contains("MiB are free at "), "{said}");
    booted.said("leaving").await;
    booted.end().await;
    assert_eq!(fixture.runner(), None);
}

/// It has not asked to be replaced for lack of use: the group puts another one in its place.
#[tokio::test]
async fn a_group_replaces_an_instance_with_a_full_disk() {
    let fixture = with_hooks().await;
    fixture.write("etc/kiln/least-free-mib", "99999999999\n", 0o644);
    let imds = fixture.imds(Some(Fixture::in_group(fixture.config(), 300).to_string())).await;
    let (mut booted, aws) = fixture.boot_in_group(imds).await;
    booted.said("in service").await;
    let (conclusion, _) = ended(&fixture, fixture.github.queue_job(script("true"))).await;
    assert_eq!(conclusion, Conclusion::Failure);
    assert_eq!(booted.end().await, Some(0), "{:#?}", booted.log);
    assert_eq!((aws.count("TerminateInstanceInAutoScalingGroup"), aws.state()), (1, "Terminating:Proceed".to_owned()));
    assert_eq!(fixture.runner(), None);
}
