//! What a job could get at.

use std::path::PathBuf;

use kiln_stand_ins::github::{Conclusion, JobSpec, JobState, Step};
use kiln_stand_ins::machine::runner_ids;
use serde_json::json;

use crate::support::{Fixture, SOON, fixture};

/// On this machine the runner's user reaches the stand-in, as on an instance without the guard.
#[tokio::test]
async fn an_instance_whose_jobs_reach_the_metadata_service_refuses_to_serve() {
    let fixture = fixture().await;
    let mut config = fixture.config();
    config["job_metadata_access"] = json!("blocked");
    fixture.boot(&config).await.given_up("the runner's user reaches the metadata service").await;
    assert_eq!(fixture.github.count("POST", "/registration-token"), 0, "it does not even register");
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
        let fixture = fixture().await;
        let mut config = if ephemeral { fixture.ephemeral() } else { fixture.config() };
        config["environment"] = json!({ "https_proxy": "http://proxy:3128" });
        let mut booted = fixture.boot(&config).await;
        booted.online().await;
        let root: PathBuf = fixture.path("");
        let script = script.replace("ROOT", root.to_str().unwrap());
        let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run(script)));
        let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
        let JobState::Completed { conclusion, output, .. } = fixture.github.wait_job(job, ended, SOON).await.unwrap()
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

#[tokio::test]
async fn a_job_is_in_dockers_group_only_where_it_may_use_docker() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: groups can't be chosen");
        return;
    }
    for (access, groups) in [("allowed", "65534 990 993\n"), ("blocked", "65534 990\n")] {
        let fixture = fixture().await;
        fixture.write("etc/group", "docker:x:993:other,runner\nvideo:x:990:runner\n", 0o644);
        let mut config = fixture.config();
        config["job_docker_access"] = json!(access);
        let mut booted = fixture.boot(&config).await;
        booted.online().await;
        let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("id -G".to_owned())));
        let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
        let state = fixture.github.wait_job(job, ended, SOON).await.unwrap();
        assert!(matches!(&state, JobState::Completed { output, .. } if output == groups), "{access}: {state:?}");
        assert_eq!(booted.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_runner_whose_own_group_is_dockers_can_not_be_kept_from_it() {
    let fixture = fixture().await;
    fixture.write("etc/group", &format!("docker:x:{}:\n", runner_ids().1), 0o644);
    let mut config = fixture.config();
    config["job_docker_access"] = json!("blocked");
    fixture.boot(&config).await.given_up("can't be kept from docker").await;
    assert_eq!(fixture.github.count("POST", "/registration-token"), 0, "it does not even register");
}

/// The image's own rules, in a network namespace that is the instance, between a metadata service and a container.
const GUARDED: &str = r#"
set -euo pipefail
unshare --net python3 -c 'import time; time.sleep(120)' &
environment=$!
unshare --net python3 -c 'import time; time.sleep(120)' &
container=$!
hierarchy=/sys/fs/cgroup
[[ -e $hierarchy/cgroup.procs ]] || hierarchy=/sys/fs/cgroup/unified
jobs=$hierarchy/kiln.slice/kiln-jobs.slice
job=$jobs/kiln-jobs.service/job-1
mkdir -p "$job"
trap 'kill $(jobs -p) || true; rmdir -p "$job" 2>/dev/null || true' EXIT
within() { nsenter --target "$1" --net -- "${@:2}"; }
link() { # the other namespace, this end, that end
  # Until the process has a namespace of its own, the other end would come into this one.
  until [[ $(readlink "/proc/$1/ns/net") != "$(readlink /proc/$$/ns/net)" ]]; do sleep 0.1; done
  ip link add "$2" type veth peer name eth0 netns "$1"
  ip address add "$3" dev "$2" && ip link set "$2" up
  within "$1" ip address add "$4" dev eth0
  within "$1" ip link set eth0 up
  within "$1" ip route add default via "${3%/*}"
}
ip link set lo up
link $environment nitro 169.254.169.1/24 169.254.169.254/24
ip -6 address add fd00:ec2::1/64 dev nitro nodad
within $environment ip -6 address add fd00:ec2::254/64 dev eth0 nodad
link $container docker0 172.17.0.1/16 172.17.0.2/16
echo 1 >/proc/sys/net/ipv4/ip_forward
within $environment python3 -m http.server 80 --bind 169.254.169.254 >/dev/null 2>&1 &
within $environment python3 -m http.server 80 --bind fd00:ec2::254 >/dev/null 2>&1 &
# Root in a container of the host's network: nothing but its control group sets it apart.
in_group() { bash -c 'echo $$ >"$0/cgroup.procs"; exec "$@"' "$@"; }
among_jobs() { in_group "$jobs" "$@"; }
in_a_job() { in_group "$job" "$@"; }

see() {
  local expected=$1 who=$2 code=0
  shift 2
  "$@" "$BINARY" probe-metadata || code=$?
  [[ $code == "$expected" ]] || { echo "$who: the probe ended with $code, not $expected"; exit 1; }
}
inside() { local code=0; within $container "$@" --forwarded || code=$?; return $code; }
runner=(setpriv --reuid=65534 --regid=65534 --clear-groups)
other=(setpriv --reuid=1234 --regid=1234 --clear-groups)
until [[ $("$BINARY" probe-metadata; echo $?) == 10 ]]; do sleep 0.1; done
until (exec 3<>/dev/tcp/fd00:ec2::254/80) 2>/dev/null; do sleep 0.1; done
see 10 'the runner, unguarded' "${runner[@]}"
until [[ $(inside "$BINARY" probe-metadata; echo $?) == 10 ]]; do sleep 0.1; done
see 10 'a container, unguarded' inside
see 10 'root among the jobs, unguarded' among_jobs
eval "$START"
see 0 'the runner' "${runner[@]}"
see 0 'any other user' "${other[@]}"
see 0 'the runner, root in a namespace of its own' "${runner[@]}" unshare --user --map-root-user
see 0 'a container' inside
see 10 'root among the jobs, where only users are told apart' among_jobs
eval "$START_OF_JOBS"
see 0 'root among the jobs' among_jobs
see 0 'root in the control group of a job' in_a_job
see 10 'the binary itself' env
eval "$STOP_OF_JOBS"
eval "$STOP"
see 10 'the runner, the guard lifted' "${runner[@]}"
see 10 'a container, the guard lifted' inside
eval "$(grep -v /ip6tables <<<"$START")"
see 10 'the runner, guarded for IPv4 only' "${runner[@]}"
iptables --insert OUTPUT --destination 169.254.169.254 --jump DROP
ip6tables --insert OUTPUT --destination fd00:ec2::254 --jump DROP
see 11 'who gets no answer, which is no verdict' env
"#;

#[test]
fn the_guards_rules_keep_all_away_but_roots_own_services() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: network namespaces and iptables are out of reach");
        return;
    }
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ami/files/usr/lib/systemd/system/");
    let lines = |file: &str, key: &str| {
        let unit = std::fs::read_to_string(format!("{units}{file}")).unwrap();
        let lines = unit.lines().filter_map(|line| Some(line.strip_prefix(key)?.trim_start_matches('-').to_owned()));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (guard, jobs) = ("kiln-metadata-guard.service", "kiln-metadata-guard.service.d/jobs.conf");
    let output = std::process::Command::new("unshare")
        .args(["--net", "bash", "-c", GUARDED])
        .env("BINARY", env!("CARGO_BIN_EXE_kiln-bootstrap"))
        .env("START", lines(guard, "ExecStart="))
        .env("STOP", lines(guard, "ExecStop="))
        .env("START_OF_JOBS", lines(jobs, "ExecStart="))
        .env("STOP_OF_JOBS", lines(jobs, "ExecStop="))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn run_job(fixture: &Fixture, job: JobSpec) -> (Conclusion, String) {
    let job = fixture.github.queue_job(job);
    let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
    match fixture.github.wait_job(job, ended, SOON).await.unwrap() {
        JobState::Completed { conclusion, output, .. } => (conclusion, output),
        state => panic!("{state:?}"),
    }
}

/// `PATH` and its like are a job's, and a job writes to some of the folders they name: no process of root's may have them.
#[tokio::test]
async fn a_fleets_path_leads_root_to_nothing_of_a_jobs() {
    let fixture = fixture().await;
    // What a job has put there: it would be run as root.
    fixture.write("home/runner/bin/setpriv", "#!/bin/sh\nid -u >ROOT/was-root\nexit 1\n", 0o755);
    let root = fixture.path("").display().to_string();
    fixture.write("home/runner/bin/setpriv", &format!("#!/bin/sh\nid -u >{root}/was-root\nexit 1\n"), 0o755);
    let mut config = fixture.config();
    config["environment"] = json!({ "PATH": format!("{root}/home/runner/bin:/usr/bin:/bin") });
    let mut booted = fixture.boot(&config).await;
    booted.online().await;
    let (conclusion, output) =
        run_job(&fixture, JobSpec::new(["linux-x64"]).step(Step::Run("echo $PATH".into()))).await;
    assert_eq!(conclusion, Conclusion::Success, "{output}");
    assert!(output.starts_with(&root), "the job has it: {output}");
    assert!(!fixture.path("was-root").exists());
    assert_eq!(booted.stop().await, Some(0));
}

#[tokio::test]
async fn a_variable_that_loads_code_is_refused() {
    for name in ["LD_PRELOAD", "GLIBC_TUNABLES", "BASH_ENV"] {
        let fixture = fixture().await;
        let mut config = fixture.config();
        config["environment"] = json!({ name: "/tmp/x" });
        let mut booted = fixture.boot(&config).await;
        let said = booted.said("this boot can't succeed").await;
        assert!(said["error"].as_str().unwrap().contains(name), "{said}");
        assert_eq!(booted.end().await, Some(1));
    }
}

/// A job is the runner's user, and that user writes to three places only.
#[tokio::test]
async fn a_job_can_not_change_what_the_next_one_is_run_by() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: everything is the job's");
        return;
    }
    let fixture = fixture().await;
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    let script = r#"
        cd ROOT/opt/actions-runner
        for file in bin/Runner.Listener bin/Runner.Worker externals/node24/bin/node config.sh env.sh .env .runner .credentials .credentials_rsaparams; do
            if (echo x >>$file) 2>/dev/null; then echo "wrote $file"; fi
            if mv $file $file.old 2>/dev/null; then echo "moved $file"; fi
            if rm -f $file 2>/dev/null && [[ ! -e $file ]]; then echo "removed $file"; fi
        done
        for folder in bin externals; do
            if mv $folder $folder.old 2>/dev/null; then echo "moved $folder"; fi
            if touch $folder/new 2>/dev/null; then echo "wrote to $folder"; fi
        done
        echo '{}' >.runner_migrated
        echo x >.setup_info
        mkdir -p planted/deep
        ps -o pid= -C Runner.Listener | xargs kill -9
        sleep 600
    "#;
    let script = script.replace("ROOT", fixture.path("").to_str().unwrap().trim_end_matches('/'));
    fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run(script)));
    booted.said("the listener ended").await;
    let (conclusion, output) = run_job(&fixture, JobSpec::new(["linux-x64"]).step(Step::Run("echo next".into()))).await;
    assert_eq!((conclusion, output.as_str()), (Conclusion::Success, "next\n"));
    let folder = fixture.path("opt/actions-runner");
    for planted in [".runner_migrated", ".setup_info", "planted"] {
        assert!(!folder.join(planted).exists(), "{planted} is still there");
    }
    for name in ["bin/Runner.Listener", "externals/node24/bin/node", "config.sh", ".env", ".runner", ".credentials"] {
        use std::os::unix::fs::MetadataExt as _;
        let found = std::fs::metadata(folder.join(name)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o022), (0, 0), "{name}");
    }
    let text = std::fs::read_to_string(folder.join(".env")).unwrap();
    assert_eq!(text, "LANG=C.UTF-8\n");
    assert!(
        !std::fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|of| of == "old"))
    );
    assert_eq!(booted.stop().await, Some(0));
}

/// What an earlier registration has left would make `config.sh` refuse, or count in the new one's place.
#[tokio::test]
async fn what_an_earlier_registration_left_is_no_hindrance() {
    let fixture = fixture().await;
    for name in [
        ".runner",
        ".runner_migrated",
        ".credentials",
        ".credentials_migrated",
        ".credentials_rsaparams",
        ".env",
        ".path",
    ] {
        fixture.write(&format!("opt/actions-runner/{name}"), "HOOK=evil\n", 0o644);
    }
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    let (conclusion, output) =
        run_job(&fixture, JobSpec::new(["linux-x64"]).step(Step::Run("echo ${HOOK-none}".into()))).await;
    assert_eq!((conclusion, output.as_str()), (Conclusion::Success, "none\n"));
    assert!(!fixture.path("opt/actions-runner/.runner_migrated").exists());
    assert_eq!(booted.stop().await, Some(0));
}

/// `runs-on` asks for labels, and the same kiln.toml is to give the same whichever way a runner registers.
#[tokio::test]
async fn both_registrations_give_the_same_labels() {
    let architecture = if cfg!(target_arch = "aarch64") { "ARM64" } else { "X64" };
    for ephemeral in [false, true] {
        let fixture = fixture().await;
        let mut config = if ephemeral { fixture.ephemeral() } else { fixture.config() };
        config["labels"] = json!(["linux-x64", "Self-Hosted", "linux", "LINUX-X64", "big"]);
        let mut booted = fixture.boot(&config).await;
        booted.online().await;
        let labels = fixture.runner().unwrap().labels;
        assert_eq!(labels, ["self-hosted", "Linux", architecture, "linux-x64", "big"], "ephemeral: {ephemeral}");
        assert_eq!(booted.stop().await, Some(0));
    }
}

#[tokio::test]
async fn more_labels_than_github_takes_are_refused_by_name() {
    for ephemeral in [false, true] {
        let fixture = fixture().await;
        let mut config = if ephemeral { fixture.ephemeral() } else { fixture.config() };
        config["labels"] = (0..98).map(|number| json!(format!("label-{number}"))).collect();
        fixture.boot(&config).await.given_up("101 labels").await;
        assert_eq!(fixture.runner(), None);
    }
}

/// A job's name is in the listener's lines, and can look like any of them.
#[tokio::test]
async fn a_jobs_name_is_never_taken_for_the_listeners_word() {
    let fixture = fixture().await;
    let mut booted = fixture.boot(&fixture.config()).await;
    booted.online().await;
    for name in [
        "Listening for Jobs",
        "x\n2026-11-23 09:00:00Z: Listening for Jobs",
        "x\n2026-11-23 09:00:00Z: Job x completed with result: Succeeded",
    ] {
        let job = fixture.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Hold).named(name));
        fixture.github.wait_job(job, |state| matches!(state, JobState::InProgress { .. }), SOON).await.unwrap();
        fixture.github.release_job(job);
        let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
        let state = fixture.github.wait_job(job, ended, SOON).await.unwrap();
        assert!(matches!(state, JobState::Completed { conclusion: Conclusion::Success, .. }), "{name}: {state:?}");
    }
    assert_eq!(booted.stop().await, Some(0));
}
