//! AWS's partitions: what is in one can't be named or reached from another.

use crate::model::Region;

/// Each with what its regions' codes begin with; the first that fits counts.
///
/// Source: botocore's partitions.json (`regionRegex`), version of 2026-09.
const PARTITIONS: &[(&str, &[&str])] = &[
    ("aws-cn", &["cn-"]),
    ("aws-us-gov", &["us-gov-"]),
    ("aws-iso", &["us-iso-"]),
    ("aws-iso-b", &["us-isob-"]),
    ("aws-iso-e", &["eu-isoe-"]),
    ("aws-iso-f", &["us-isof-"]),
    ("aws-eusc", &["eusc-"]),
    ("aws", &["us-", "eu-", "ap-", "sa-", "ca-", "me-", "af-", "il-", "mx-"]),
];

/// The regions that AWS had when this was written: what is not among them may be new, or mistyped.
///
/// Source: <https://docs.aws.amazon.com/global-infrastructure/latest/regions/aws-regions.html> and botocore's
/// partitions.json.
const REGIONS: &[&str] = &[
    "af-south-1",
    "ap-east-1",
    "ap-east-2",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-6",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "cn-north-1",
    "cn-northwest-1",
    "eu-central-1",
    "eu-central-2",
    "eu-isoe-west-1",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eusc-de-east-1",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "mx-central-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "us-iso-west-1",
    "us-isob-east-1",
    "us-isob-west-1",
    "us-isof-east-1",
    "us-isof-south-1",
    "us-west-1",
    "us-west-2",
];

/// The partition that a region is in, by its code; `None` where no partition has such codes.
pub fn partition(region: &Region) -> Option<&'static str> {
    let is_of = |begins: &&[&str]| begins.iter().any(|begin| region.as_str().starts_with(begin));
    PARTITIONS.iter().find(|(_, begins)| is_of(begins)).map(|(name, _)| *name)
}

/// Is it one of the regions that AWS had when this was written?
pub fn is_known(region: &Region) -> bool {
    REGIONS.contains(&region.as_str())
}

/// The known region with the code that is nearest, if a slip of the hand lies between them.
pub fn nearest(region: &Region) -> Option<&'static str> {
    let distance = |name: &&&str| strsim::osa_distance(region.as_str(), name);
    REGIONS.iter().min_by_key(distance).filter(|name| distance(name) <= 2).copied()
}
