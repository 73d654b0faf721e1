//! The record of a fleet's current and former images, which makes rollbacks possible.
//!
//! Each fleet has three SSM parameters, each with the id of an AMI. `current` is written last, once the runners are online. `former` is
//! the previous value of `current`. `rejected` is an image that a rollback replaced; no pipeline rolls it out again without `--retry`.

use kiln_config::config::{Config, Fleet};
use kiln_config::model::{AmiId, FleetName};

use super::Target;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::ports::Images;

/// The record of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The image in service: its runners were online.
    pub current: Option<AmiId>,
    /// The image that was in service before.
    pub former: Option<AmiId>,
    /// The image that a rollback replaced.
    pub rejected: Option<AmiId>,
}

/// The image that a run rolls to, and the changes of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetImage {
    /// The image.
    pub ami: AmiId,
    /// The image to reject. This is the first step, so that an interrupted rollback resumes as a rollback.
    pub reject: Option<AmiId>,
    /// Whether to delete the `rejected` record.
    pub accept: bool,
    /// Set if the newest image is skipped because a rollback rejected it.
    pub kept_from: Option<AmiId>,
}

impl Record {
    /// Reads the record of a fleet.
    ///
    /// # Errors
    /// What AWS answers.
    pub async fn read(config: &Config, fleet: &FleetName, cloud: &impl Images) -> Result<Self> {
        let read = async |which| cloud.recorded(&config.fleet_parameter(fleet, which)).await;
        Ok(Self { current: read("current").await?, former: read("former").await?, rejected: read("rejected").await? })
    }

    /// The image to roll to. `baked` is the newest image, `stack` the image in the stack's parameters, if the stack exists.
    ///
    /// # Errors
    /// [`crate::Kind::Precondition`] if there is no image to roll back to.
    pub fn aim(&self, target: Target, baked: &AmiId, stack: Option<&AmiId>) -> Result<TargetImage> {
        let rejected = self.rejected.as_ref();
        // The image of the stack comes first: the record may be older.
        let good = || [stack, self.current.as_ref(), self.former.as_ref()].into_iter().flatten();
        let to = |ami: &AmiId| TargetImage { ami: ami.clone(), reject: None, accept: false, kept_from: None };
        match target {
            Target::Latest if rejected == Some(baked) => match good().find(|ami| *ami != baked) {
                Some(last) => Ok(TargetImage { kept_from: Some(baked.clone()), ..to(last) }),
                None => Err(nothing_before(baked)),
            },
            // The rejection ends once the fleet gets another image; otherwise a later rollback would count it as its own.
            Target::Latest | Target::RetryLatest => Ok(TargetImage { accept: rejected.is_some(), ..to(baked) }),
            Target::Previous => match (rejected, stack) {
                (_, None) => Err(nothing_before(baked)),
                // A repeated rollback goes back only one step.
                (Some(bad), Some(_)) => match good().find(|ami| *ami != bad) {
                    Some(last) => Ok(to(last)),
                    None => Err(nothing_before(bad)),
                },
                (None, Some(now)) => match good().find(|ami| *ami != now) {
                    Some(last) => Ok(TargetImage { reject: Some(now.clone()), ..to(last) }),
                    None => Err(nothing_before(now)),
                },
            },
        }
    }
}

fn nothing_before(ami: &AmiId) -> Error {
    Error::new(Code::NoPreviousImage, format!("no image that was in service before {ami} is recorded"))
        .hint("change kiln.toml as needed, then run `cargo xtask ami` and `cargo xtask deploy`")
}

/// Records an image as the current one after its runners were online. Writes nothing if it is already recorded.
pub(crate) async fn mark(config: &Config, fleet: &Fleet, ami: &AmiId, cloud: &impl Images) -> Result<()> {
    let name = |which| config.fleet_parameter(&fleet.name, which);
    let record = Record::read(config, &fleet.name, cloud).await?;
    match &record.current {
        Some(current) if current == ami => return Ok(()),
        Some(current) if record.former.as_ref() != Some(current) => cloud.record(&name("former"), current).await?,
        _ => {}
    }
    cloud.record(&name("current"), ami).await?;
    Ok(())
}

pub(crate) async fn reject(config: &Config, fleet: &Fleet, ami: &AmiId, cloud: &impl Images) -> Result<()> {
    Ok(cloud.record(&config.fleet_parameter(&fleet.name, "rejected"), ami).await?)
}

/// Deletes the record of a fleet.
pub(crate) async fn forget(config: &Config, fleet: &FleetName, cloud: &impl Images) -> Result<()> {
    for which in ["current", "former", "rejected"] {
        cloud.forget(&config.fleet_parameter(fleet, which)).await?;
    }
    Ok(())
}

/// Deletes the rejection.
pub(crate) async fn accept(config: &Config, fleet: &Fleet, cloud: &impl Images) -> Result<()> {
    Ok(cloud.forget(&config.fleet_parameter(&fleet.name, "rejected")).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ami(letter: char) -> AmiId {
        format!("ami-0000000{letter}").parse().unwrap()
    }

    fn record(current: Option<char>, former: Option<char>, rejected: Option<char>) -> Record {
        let [current, former, rejected] = [current, former, rejected].map(|letter| letter.map(ami));
        Record { current, former, rejected }
    }

    /// The image that a run rolls to, and the image that it rejects first.
    fn aim(record: &Record, target: Target, baked: char, stack: char) -> (AmiId, Option<AmiId>) {
        let aim = record.aim(target, &ami(baked), Some(&ami(stack))).unwrap();
        (aim.ami, aim.reject)
    }

    #[test]
    fn a_rollback_goes_one_step_back_however_often_it_is_run() {
        // b is current, a was before: roll back to a, and reject b first.
        let before = record(Some('b'), Some('a'), None);
        assert_eq!(aim(&before, Target::Previous, 'b', 'b'), (ami('a'), Some(ami('b'))));
        // Interrupted after the rejection; after the stack's update; between the two marks; done.
        for (record, stack) in [
            (record(Some('b'), Some('a'), Some('b')), 'b'),
            (record(Some('b'), Some('a'), Some('b')), 'a'),
            (record(Some('b'), Some('b'), Some('b')), 'a'),
            (record(Some('a'), Some('b'), Some('b')), 'a'),
        ] {
            for target in [Target::Previous, Target::Latest] {
                assert_eq!(
                    aim(&record, target, 'b', stack),
                    (ami('a'), None),
                    "{target:?} with {record:?}, stack at {stack}"
                );
            }
        }
    }

    #[test]
    fn a_rollout_that_failed_half_way_is_left_for_what_is_marked() {
        let half = record(Some('b'), Some('a'), None);
        assert_eq!(aim(&half, Target::Previous, 'c', 'c'), (ami('b'), Some(ami('c'))));
        let back = record(Some('b'), Some('a'), Some('c'));
        assert_eq!(aim(&back, Target::Previous, 'c', 'b'), (ami('b'), None), "not one more step back");
    }

    #[test]
    fn a_rejected_image_is_rolled_out_only_when_asked_for() {
        let back = record(Some('a'), Some('b'), Some('b'));
        let held = back.aim(Target::Latest, &ami('b'), Some(&ami('a'))).unwrap();
        assert_eq!((held.ami, held.kept_from), (ami('a'), Some(ami('b'))));
        let again = back.aim(Target::RetryLatest, &ami('b'), Some(&ami('a'))).unwrap();
        assert_eq!((again.ami, again.accept), (ami('b'), true));
        assert_eq!(aim(&back, Target::Latest, 'c', 'a'), (ami('c'), None), "another image is not kept from");
    }

    #[test]
    fn without_an_earlier_image_there_is_no_way_back() {
        for (record, stack) in [(record(Some('a'), None, None), Some('a')), (record(None, None, None), None)] {
            let error = record.aim(Target::Previous, &ami('a'), stack.map(ami).as_ref()).unwrap_err();
            assert_eq!(error.code, Code::NoPreviousImage);
        }
    }
}
