//! One rule a test.

use super::*;

const MINUTE: u64 = 60;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[tokio::test(start_paused = true)]
async fn a_job_is_waited_for_with_heartbeats() {
    let (sim, end, took) =
        lived(Scenario { jobs: vec![(10, 1000)], notices: vec![(20, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((end, sim.cancelled.borrow().len(), sim.terminated.get()), (End::Left, 0, true));
    assert!((1010..1040).contains(&took.as_secs()), "{took:?}");
    assert!(sim.heartbeats.borrow().len() >= 30, "{}", sim.heartbeats.borrow().len());
}

/// Auto Scaling has not begun to wait: it answers as if it no longer did.
#[tokio::test(start_paused = true)]
async fn hooks_are_completed_until_the_group_accepts_it() {
    for late in [1, 30, 600] {
        let notices = vec![(1000, Notice::Terminate)];
        let (sim, end, took) = lived(Scenario { late_hooks: (late, late), notices, ..quiet() }).await;
        assert_eq!((sim.launch.get(), end, sim.terminated.get()), (Some(Verdict::Continue), End::Left, true), "{late}");
        assert!(took < secs(1000 + late + 20), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_is_not_heard_is_made_again() {
    let (sim, _, _) = lived(Scenario { refusals: 2, notices: vec![(200, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((sim.launch.get(), sim.deaf.get()), (Some(Verdict::Continue), 0));
}

/// It has said "Listening for Jobs", and GitHub refuses its first poll.
#[tokio::test(start_paused = true)]
async fn a_listener_that_does_not_survive_its_first_poll_brings_nothing_into_service() {
    let starts = vec![(Some(1), Some((2, Some(7)))); 9];
    let (sim, end, took) = lived(Scenario { starts, ..quiet() }).await;
    assert_eq!((end, sim.launch.get(), sim.marked.get()), (End::Broken, Some(Verdict::Abandon), true));
    assert!((300..400).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_outlives_the_limit_is_lost_then_and_no_earlier() {
    let (sim, end, _) =
        lived(Scenario { jobs: vec![(10, 9000)], notices: vec![(20, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((end, sim.registered.get()), (End::Left, false));
    assert_eq!(*sim.cancelled.borrow(), [Some(secs(3600))]);
}

#[tokio::test(start_paused = true)]
async fn a_spot_instances_job_is_cancelled_45_seconds_before_it_is_taken() {
    let spot = |at, left| (at, Notice::Spot(secs(left)));
    for (notices, ends) in [
        (vec![spot(200, 120)], 275),
        (vec![(20, Notice::Terminate), spot(200, 120)], 275),
        (vec![(20, Notice::Terminate), spot(200, 60)], 215),
    ] {
        let (sim, _, took) = lived(Scenario { jobs: vec![(10, 1000)], notices, ..quiet() }).await;
        assert_eq!(sim.cancelled.borrow().len(), 1);
        assert!((ends..ends + 20).contains(&took.as_secs()), "{took:?}");
        assert!(!sim.registered.get());
    }
}

/// Users of another tool have seen it: GitHub deletes a runner that works (terraform-aws-github-runner#5228).
#[tokio::test(start_paused = true)]
async fn a_job_goes_on_though_github_has_deleted_its_runner() {
    for (vanishes, careless) in [(None, vec![(0, 9000)]), (Some(15), vec![])] {
        let notices = vec![(20, Notice::Terminate)];
        let (sim, end, took) = lived(Scenario { jobs: vec![(10, 1000)], careless, vanishes, notices, ..quiet() }).await;
        assert_eq!((end, sim.cancelled.borrow().len()), (End::Left, 0));
        assert!(took >= secs(1010), "{took:?}");
    }
}

/// GitHub has given it away, and takes the runner for idle.
#[tokio::test(start_paused = true)]
async fn a_job_in_flight_is_waited_for_after_the_runner_is_deleted() {
    let fate = Scenario { jobs: vec![(19, 500)], flight: 8, careless: vec![(0, 9000)], ..quiet() };
    let (sim, end, took) = lived(Scenario { notices: vec![(20, Notice::Terminate)], ..fate }).await;
    assert_eq!((end, sim.cancelled.borrow().len()), (End::Left, 0));
    assert!(took >= secs(527), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_job_that_has_no_line_is_seen_by_its_worker() {
    let fate = Scenario { jobs: vec![(10, 100)], mute: true, sees_workers: true, ..quiet() };
    let (sim, end, took) = lived(Scenario { notices: vec![(20, Notice::Terminate)], ..fate.clone() }).await;
    assert_eq!((end, sim.cancelled.borrow().len(), sim.registered.get()), (End::Left, 0, false));
    assert!((110..200).contains(&took.as_secs()), "{took:?}");
    let mut idle = fate;
    idle.terms.idle_limit = Some(secs(300));
    let (_, _, took) = lived(idle).await;
    assert!((470..600).contains(&took.as_secs()), "{took:?}");
}

/// Its listing lags (terraform-aws-github-runner#4391).
#[tokio::test(start_paused = true)]
async fn a_runner_that_github_does_not_list_yet_is_not_taken_for_gone() {
    let starts = vec![(Some(1), Some((5, Some(1))))];
    let (sim, end, _) =
        lived(Scenario { starts, stale: vec![(0, 50)], notices: vec![(900, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((end, sim.granted.get(), sim.registered.get()), (End::Left, None, false));
    // Asked to leave meanwhile, it leaves no runner.
    let (sim, end, _) =
        lived(Scenario { stale: vec![(0, 50)], notices: vec![(9, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((end, sim.registered.get()), (End::Left, false));
}

/// Its listener ends with 0 in the second in which its job's end would have been heard. It has not reported that end, so that
/// GitHub has not removed the runner for it: that GitHub does not list it just now proves nothing.
#[tokio::test(start_paused = true)]
async fn an_end_that_reports_no_job_is_no_proof_that_github_has_removed_the_runner() {
    for in_group in [false, true] {
        let starts = vec![(Some(0), Some((692, Some(0))))];
        let mut fate = Scenario { jobs: vec![(31, 657)], flight: 4, starts, stale: vec![(690, 735)], ..quiet() };
        (fate.terms.ephemeral, fate.terms.in_group) = (true, in_group);
        let (sim, end, took) = lived(fate).await;
        assert_eq!((end, sim.registered.get()), (End::Left, false), "{in_group}");
        assert!(took < secs(900), "{took:?}");
    }
}

/// It has reported the end of its one job, upon which GitHub removes the runner itself: nothing is left to wait for.
#[tokio::test(start_paused = true)]
async fn an_end_that_reports_its_job_is_waited_for_no_longer() {
    let mut fate = Scenario { jobs: vec![(31, 657)], ..quiet() };
    (fate.terms.ephemeral, fate.terms.in_group) = (true, false);
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.registered.get()), (End::Left, false));
    assert!(took < secs(690 + 15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_hours_replaces_nobody_and_counts_nothing() {
    for ephemeral in [false, true] {
        let mut fate = Scenario { outage: Some((100, 20_000)), jobs: vec![(20_100, 10)], ..quiet() };
        fate.terms.ephemeral = ephemeral;
        fate.notices = vec![(21_000, Notice::Terminate)];
        let (sim, end, took) = lived(fate).await;
        assert_eq!((end, sim.cancelled.borrow().len(), sim.jobs.borrow().len()), (End::Left, 0, 0));
        // The ephemeral one has done its job then.
        assert_eq!((sim.granted.get().is_some(), took >= secs(20_100)), (ephemeral, true), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_boots_into_an_outage_keeps_its_launch_waiting() {
    let fate = Scenario { outage: Some((0, 5000)), notices: vec![(6000, Notice::Terminate)], ..quiet() };
    let (sim, _, _) = lived(fate).await;
    assert_eq!(sim.launch.get(), Some(Verdict::Continue));
    let mut last = sim.born;
    for beat in sim.launch_heartbeats.borrow().iter().copied().chain([sim.at(5000)]) {
        assert!(beat - last < secs(600), "silent for {:?} at {:?}", beat - last, beat - sim.born);
        last = beat;
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_can_not_reach_github_for_a_day_is_replaced() {
    let fate = Scenario { outage: Some((100, 400_000)), ..quiet() };
    let (sim, _, took) = lived(fate).await;
    assert!(sim.granted.get().is_some() && took > OUTAGE_LIMIT && took < OUTAGE_LIMIT * 2, "{took:?}");
}

/// GitHub has called the newest release deprecated, for a day.
#[tokio::test(start_paused = true)]
async fn a_version_that_is_called_deprecated_is_tried_again_less_and_less_often() {
    let starts = vec![(Some(1), Some((50, Some(7)))); 9];
    for (served, starts_left) in [(Served::Yes, 0), (Served::Unknown, 0), (Served::No, 5)] {
        let notices = vec![(4 * 3600, Notice::Terminate)];
        let (sim, end, _) = lived(Scenario { starts: starts.clone(), served, notices, ..quiet() }).await;
        assert_eq!(
            (end, sim.launch.get(), sim.granted.get()),
            (End::Left, Some(Verdict::Continue), None),
            "{served:?}"
        );
        assert!(sim.starts.borrow().len().abs_diff(starts_left) <= 1, "{served:?}: {}", sim.starts.borrow().len());
        assert_eq!(sim.marked.get(), served != Served::Yes);
    }
}

/// A refresh that has brought a version here that GitHub serves no more has to fail.
#[tokio::test(start_paused = true)]
async fn a_deprecated_version_gives_up_its_launch_no_earlier_than_allowed() {
    for (told, launch) in [(400, Some(Verdict::Abandon)), (290, None)] {
        let starts = vec![(None, Some((3, Some(7)))); 9];
        let notices = vec![(told, Notice::Terminate)];
        let (sim, _, _) = lived(Scenario { starts, served: Served::No, notices, ..quiet() }).await;
        assert_eq!((sim.launch.get(), sim.granted.get(), sim.marked.get()), (launch, None, true));
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_listener_gives_the_instance_up_no_earlier_than_allowed() {
    let fate = Scenario { starts: vec![(None, Some((1, Some(2)))); 9], ..quiet() };
    let (sim, end, took) = lived(fate.clone()).await;
    assert_eq!((end, sim.launch.get()), (End::Broken, Some(Verdict::Abandon)));
    assert_eq!(sim.starts.borrow().len(), 9 - MOST_STARTS as usize);
    assert!(took >= secs(300), "{took:?}");
    // In service, it costs an instance a quarter of an hour.
    let (sim, _, took) = lived(Scenario { in_service: true, ..fate }).await;
    assert!(sim.granted.get().is_some() && took >= secs(900), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn after_its_one_job_an_ephemeral_instance_asks_to_be_replaced_until_it_is_granted() {
    let mut fate = Scenario { jobs: vec![(10, 50)], refusals: 3, ..quiet() };
    fate.terms.ephemeral = true;
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.terminated.get()), (End::Left, true));
    assert!((120..200).contains(&took.as_secs()), "{took:?}");
}

/// GitHub has taken its registration or its token away: the listener ends with 0.
#[tokio::test(start_paused = true)]
async fn an_end_without_a_job_is_no_job_done() {
    let mut fate = Scenario { starts: vec![(Some(1), Some((10, Some(0)))); 9], ..quiet() };
    fate.terms.ephemeral = true;
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.granted.get().is_some()), (End::Broken, true));
    assert!(took >= secs(900), "{took:?}");
}

/// It ended with an error after its job was heard (actions/runner#3822).
#[tokio::test(start_paused = true)]
async fn a_single_use_runner_that_had_a_job_is_done_whatever_its_code() {
    let mut fate = Scenario { jobs: vec![(10, 900)], starts: vec![(Some(1), Some((60, Some(2))))], ..quiet() };
    fate.terms.ephemeral = true;
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.granted.get().is_some()), (End::Left, true));
    assert!(took < secs(3 * MINUTE), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_done_before_the_group_has_waited_at_its_launch_fails_no_refresh() {
    let mut fate = Scenario { jobs: vec![(5, 3)], late_hooks: (40, 0), ..quiet() };
    fate.terms.ephemeral = true;
    let (sim, end, _) = lived(fate).await;
    assert_eq!((end, sim.launch.get(), sim.terminated.get()), (End::Left, Some(Verdict::Continue), true));
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_github_forgot_is_noticed_and_its_instance_replaced() {
    for (ephemeral, every) in [(false, WATCH_EVERY), (true, WATCH_EPHEMERAL)] {
        let mut fate = Scenario { vanishes: Some(100), ..quiet() };
        fate.terms.ephemeral = ephemeral;
        let (sim, end, took) = lived(fate).await;
        assert_eq!((end, sim.granted.get().is_some()), (End::Broken, true));
        assert!(took < (every + secs(300)).max(secs(1000)), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stopped_by_somebody_else_it_asks_for_its_replacement_unless_the_machine_stops() {
    for (stops, in_service, granted, launch) in
        [(false, true, true, None), (true, true, false, None), (false, false, false, Some(Verdict::Abandon))]
    {
        // Before the listener is online.
        let signal = Some((2, stops));
        let fate = Scenario { signal, in_service, starts: vec![(Some(9), None)], ..quiet() };
        let (sim, end, _) = lived(fate).await;
        assert_eq!(
            (end, sim.granted.get().is_some(), sim.launch.get(), sim.terminated.get()),
            (End::Left, granted, launch, granted),
            "{stops} {in_service}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_can_not_ask_its_group_switches_itself_off() {
    let notices = vec![(20_000, Notice::Terminate)];
    let starts = vec![(None, Some((1, Some(2)))); 9];
    let fate = Scenario { refusals: 10_000, starts, notices, in_service: true, ..quiet() };
    let (sim, _, took) = lived(fate).await;
    assert!(sim.powered_off.get(), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_leaves_where_the_group_can_do_without_it() {
    let mut fate = Scenario { jobs: vec![(100, 500)], refusals: 1, ..quiet() };
    fate.terms.idle_limit = Some(secs(300));
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.cancelled.borrow().len()), (End::Left, 0));
    // Idle from 600 s on; refused at 900 s, granted at 1,200 s.
    assert!((1200..1230).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_old_instance_is_replaced_after_its_job() {
    let mut fate = Scenario { jobs: vec![(100, 500)], ..quiet() };
    fate.terms.max_age = Some(secs(300));
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.cancelled.borrow().len()), (End::Left, 0));
    assert!((600..630).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn an_exit_code_says_what_is_next() {
    for ephemeral in [false, true] {
        assert_eq!(ended(Some(7), ephemeral, 0), Ended::Deprecated);
        for code in [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(6), Some(139), None] {
            assert!(matches!(ended(code, ephemeral, 0), Ended::Again(_)), "{code:?}");
            assert_eq!(ended(code, ephemeral, 1) == Ended::JobDone, ephemeral, "{code:?}");
        }
    }
}

/// Its launch was completed, and the service ended before it could note that.
#[tokio::test(start_paused = true)]
async fn one_that_gives_up_a_launch_that_nobody_waits_for_asks_for_its_replacement() {
    let starts = vec![(None, Some((1, Some(2)))); 9];
    let notices = vec![(20_000, Notice::Terminate)];
    let (sim, end, took) = lived(Scenario { starts, late_hooks: (10_000, 0), notices, ..quiet() }).await;
    assert_eq!((end, sim.launch.get(), sim.granted.get().is_some()), (End::Broken, None, true));
    assert!(took < secs(1000), "{took:?}");
}
