//! A list of AWS's is whole, or an error: what is cut off would pass for all there is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_aws::Aws;
use kiln_config::config::Config;
use kiln_config::model::KeyStore;
use kiln_operations::ports::{
    Account as _, CloudError, CloudErrorKind, IamAction, Inventory as _, KeyNames, Keys as _,
};
use kiln_operations::{Code, Error, prune};

use crate::{Answer, Asked, KILN_TOML, query, wire};

/// How a service goes on with its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// After so many pages comes the last one.
    Of(usize),
    /// Each page names another.
    Endless,
    /// Each page names the same next one.
    Stuck,
}

/// An answer to a listing call, empty but for the token of the next page.
fn page(asked: &Asked, token: Option<&str>) -> Answer {
    let token_of = |name: &str| token.map(|token| format!("<{name}>{token}</{name}>")).unwrap_or_default();
    let json = |name: &str, list: &str| {
        let next = token.map(|token| format!(r#","{name}":"{token}","Truncated":true"#)).unwrap_or_default();
        Answer::of(200, format!(r#"{{"{list}":[]{next}}}"#))
    };
    let operation = asked.operation.as_str();
    match operation {
        "GetParametersByPath" => json("NextToken", "Parameters"),
        "ListSecretVersionIds" => json("NextToken", "Versions"),
        "ListKeys" => json("NextMarker", "Keys"),
        "ListStacks" => {
            let token = token_of("NextToken");
            Answer::of(200, query(operation, &format!("<StackSummaries/>{token}")))
        }
        "SimulatePrincipalPolicy" => {
            let more = format!("<IsTruncated>{}</IsTruncated>{}", token.is_some(), token_of("Marker"));
            Answer::of(200, query(operation, &more))
        }
        // EC2's.
        _ => Answer::of(200, format!("<{operation}Response>{}</{operation}Response>", token_of("nextToken"))),
    }
}

/// What a listing comes to when the operation's list goes on so, and the number of its pages that were asked for.
async fn listed(operation: &'static str, pages: Pages) -> (Result<(), CloudError>, usize) {
    let asked_for = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&asked_for);
    let (cloud, _) = wire(move |asked| {
        if asked.operation == "GetCallerIdentity" {
            let arn = "<Arn>arn:aws:iam::000000000000:user/somebody</Arn><Account>000000000000</Account>";
            return Answer::of(200, query("GetCallerIdentity", arn));
        }
        match asked.operation.as_str() {
            "DescribeSecret" => return Answer::of(200, r#"{"Name":"secret"}"#),
            "DescribeKey" => return Answer::of(400, r#"{"__type":"NotFoundException"}"#),
            _ => {}
        }
        if asked.operation != operation {
            return page(asked, None);
        }
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        match pages {
            Pages::Of(last) if number >= last => page(asked, None),
            Pages::Stuck => page(asked, Some("the same")),
            _ => page(asked, Some(&format!("page-{number}"))),
        }
    })
    .await;
    let result = ask(&cloud, operation).await;
    (result, asked_for.load(Ordering::Relaxed))
}

async fn ask(cloud: &Aws, operation: &str) -> Result<(), CloudError> {
    let names = KeyNames {
        alias: "alias/kiln".to_owned(),
        secret: "secret".to_owned(),
        tags: std::collections::BTreeMap::new(),
    };
    let text = |text: &str| vec![text.to_owned()];
    match operation {
        "DescribeImages" => cloud.own_images().await.map(drop),
        "DescribeSnapshots" => cloud.own_snapshots().await.map(drop),
        "DescribeLaunchTemplates" | "DescribeLaunchTemplateVersions" => {
            cloud.template_versions("kiln-acme-fleet-").await.map(drop)
        }
        "DescribeInstances" => cloud.machines_of(&["ami-00000001".parse().unwrap()]).await.map(drop),
        "GetParametersByPath" => cloud.parameters_below("/kiln-acme").await.map(drop),
        "ListStacks" => cloud.stacks_named("kiln-acme-fleet-").await.map(drop),
        "ListKeys" => cloud.contents(&names, KeyStore::Kms).await.map(drop),
        "ListSecretVersionIds" => cloud.contents(&names, KeyStore::SecretsManager).await.map(drop),
        "DescribeInstanceTypes" => cloud.instance_types(&text("m6i.large")).await.map(drop),
        "DescribeInstanceTypeOfferings" => cloud.zones_of(&text("m6i.large")).await.map(drop),
        "DescribeSubnets" => cloud.subnets(&text("subnet-00000001")).await.map(drop),
        "SimulatePrincipalPolicy" => {
            let right = IamAction { action: "kms:Sign".to_owned(), resource: "*".to_owned(), context: &[] };
            cloud.lacking(&[right]).await.map(drop)
        }
        other => panic!("nothing lists by {other}"),
    }
}

const LISTS: [&str; 13] = [
    "DescribeImages",
    "DescribeSnapshots",
    "DescribeLaunchTemplates",
    "DescribeLaunchTemplateVersions",
    "DescribeInstances",
    "GetParametersByPath",
    "ListStacks",
    "ListKeys",
    "ListSecretVersionIds",
    "DescribeInstanceTypes",
    "DescribeInstanceTypeOfferings",
    "DescribeSubnets",
    "SimulatePrincipalPolicy",
];

#[tokio::test]
async fn every_list_is_read_to_its_end() {
    for operation in LISTS {
        let (result, pages) = listed(operation, Pages::Of(100)).await;
        assert!(result.is_ok(), "{operation}: {result:?}");
        assert_eq!(pages, 100, "{operation}");
    }
}

#[tokio::test]
async fn a_list_of_more_pages_than_are_read_is_an_error() {
    for operation in LISTS {
        for pages in [Pages::Endless, Pages::Stuck] {
            let (result, asked) = listed(operation, pages).await;
            let error = result.expect_err(operation);
            assert_eq!(error.kind, CloudErrorKind::TooLong, "{operation} {pages:?} after {asked} pages: {error:?}");
            assert_eq!(Error::from(error).code, Code::AwsListTooLong);
        }
    }
}

#[tokio::test]
async fn deleted_stacks_are_not_listed_at_all() {
    let (cloud, asked) = wire(|asked| page(asked, None)).await;
    cloud.stacks_named("kiln-acme-fleet-").await.unwrap();
    let asked = asked.lock().unwrap();
    let filter = asked[0].fields.iter().filter(|(name, _)| name.starts_with("StackStatusFilter"));
    let statuses: BTreeSet<&str> = filter.map(|(_, status)| status.as_str()).collect();
    assert!(statuses.contains("DELETE_FAILED") && statuses.contains("REVIEW_IN_PROGRESS"), "{statuses:?}");
    assert!(!statuses.contains("DELETE_COMPLETE"), "{statuses:?}");
}

/// An account whose list of this operation has one page too many.
async fn account(operation: &'static str) -> Aws {
    let (cloud, _) = wire(move |asked| {
        if asked.operation == "DescribeImages" && operation != "DescribeImages" {
            let tags = "<tagSet><item><key>kiln:managed</key><value>true</value></item><item><key>kiln:image</key>\
                        <value>kiln-acme-image-al2023-x86-64</value></item></tagSet>";
            let image = format!("<item><imageId>ami-00000001</imageId><name>one</name>{tags}</item>");
            return Answer::of(
                200,
                format!("<DescribeImagesResponse><imagesSet>{image}</imagesSet></DescribeImagesResponse>"),
            );
        }
        if asked.operation == "DescribeStacks" {
            let error = "<Code>ValidationError</Code><Message>Stack with id x does not exist</Message>";
            return Answer::of(400, format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"));
        }
        page(asked, (asked.operation == operation).then_some("more"))
    })
    .await;
    cloud
}

#[tokio::test]
async fn prune_never_goes_by_a_part_of_what_uses_an_image() {
    let config = Config::from_toml("kiln.toml", KILN_TOML).unwrap();
    for operation in [
        "GetParametersByPath",
        "DescribeLaunchTemplates",
        "DescribeLaunchTemplateVersions",
        "DescribeInstances",
        "DescribeSnapshots",
        "DescribeImages",
    ] {
        let error = prune::observe(&config, &account(operation).await).await.unwrap_err();
        assert_eq!(error.code, Code::AwsListTooLong, "{operation}: {error}");
    }
}
