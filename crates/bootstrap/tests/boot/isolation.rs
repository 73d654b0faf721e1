//! What a job could get at.

use std::path::PathBuf;

use kiln_stand_ins::github::{Conclusion, JobSpec, JobState, Step};
use kiln_stand_ins::machine::runner_ids;
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

#[tokio::test]
async fn a_job_is_in_dockers_group_only_where_it_may_use_docker() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: groups can't be chosen");
        return;
    }
    for (access, groups) in [("allowed", "65534 990 993\n"), ("blocked", "65534 990\n")] {
        let there = there().await;
        there.write("etc/group", "docker:x:993:other,runner\nvideo:x:990:runner\n", 0o644);
        let mut config = there.config();
        config["job_docker_access"] = json!(access);
        let mut booted = there.boot(&config).await;
        booted.online().await;
        let job = there.github.queue_job(JobSpec::new(["linux-x64"]).step(Step::Run("id -G".to_owned())));
        let ended = |state: &JobState| matches!(state, JobState::Completed { .. });
        let state = there.github.wait_job(job, ended, SOON).await.unwrap();
        assert!(matches!(&state, JobState::Completed { output, .. } if output == groups), "{access}: {state:?}");
        assert_eq!(booted.stop().await, Some(0));
    }
}

#[tokio::test]
async fn a_runner_whose_own_group_is_dockers_can_not_be_kept_from_it() {
    let there = there().await;
    there.write("etc/group", &format!("docker:x:{}:\n", runner_ids().1), 0o644);
    let mut config = there.config();
    config["job_docker_access"] = json!("blocked");
    there.boot(&config).await.given_up("can't be kept from docker").await;
    assert_eq!(there.github.count("POST", "/registration-token"), 0, "it does not even register");
}

/// The image's own rules, in a network namespace that is the instance, between a metadata service and a container.
const GUARDED: &str = r#"
set -euo pipefail
unshare --net python3 -c 'import time; time.sleep(120)' &
outside=$!
unshare --net python3 -c 'import time; time.sleep(120)' &
container=$!
trap 'kill $(jobs -p)' EXIT
within() { nsenter --target "$1" --net -- "${@:2}"; }
link() { # the other namespace, this end, that end
  until ip link add "$2" type veth peer name eth0 netns "$1" 2>/dev/null; do sleep 0.1; done
  ip address add "$3" dev "$2" && ip link set "$2" up
  within "$1" ip address add "$4" dev eth0
  within "$1" ip link set eth0 up
  within "$1" ip route add default via "${3%/*}"
}
ip link set lo up
link $outside nitro 169.254.169.1/24 169.254.169.254/24
link $container docker0 172.17.0.1/16 172.17.0.2/16
echo 1 >/proc/sys/net/ipv4/ip_forward
within $outside python3 -m http.server 80 --bind 169.254.169.254 >/dev/null 2>&1 &
inside() { within $container "$@"; }

see() {
  local expected=$1 who=$2 code=0
  shift 2
  "$@" "$BINARY" probe-metadata || code=$?
  [[ $code == "$expected" ]] || { echo "$who: the probe ended with $code, not $expected"; exit 1; }
}
runner=(setpriv --reuid=65534 --regid=65534 --clear-groups)
until [[ $("$BINARY" probe-metadata; echo $?) == 10 ]]; do sleep 0.1; done
see 10 'the runner, unguarded' "${runner[@]}"
see 10 'a container, unguarded' inside
eval "$START"
see 0 'the runner' "${runner[@]}"
see 0 'a container' inside
see 10 'the binary itself' env
eval "$STOP"
see 10 'the runner, the guard lifted' "${runner[@]}"
see 10 'a container, the guard lifted' inside
"#;

#[test]
fn the_guards_rules_keep_the_runner_and_containers_away_and_nobody_else() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: network namespaces and iptables are out of reach");
        return;
    }
    let unit =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../ami/files/usr/lib/systemd/system/kiln-metadata-guard.service");
    let unit = std::fs::read_to_string(unit).unwrap().replace("--uid-owner runner", "--uid-owner 65534");
    let lines = |key: &str| unit.lines().filter_map(|line| line.strip_prefix(key)).collect::<Vec<_>>().join("\n");
    let output = std::process::Command::new("unshare")
        .args(["--net", "bash", "-c", GUARDED])
        .env("BINARY", env!("CARGO_BIN_EXE_kiln-bootstrap"))
        .env("START", lines("ExecStart="))
        .env("STOP", lines("ExecStop="))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
