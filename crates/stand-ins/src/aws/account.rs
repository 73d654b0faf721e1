//! What the emulator has not of an account: quotas, and instance types as EC2 has them.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::backend::{Backend, text_of};
use super::gateway::Call;
use super::{Shared, lock};

/// What a year-old account has of standard instances, about.
pub(super) const QUOTA: u32 = 256;

/// Name, virtual processors, architecture.
const TYPES: &[(&str, u32, &str)] = &[
    ("c7g.large", 2, "arm64"),
    ("m5.large", 2, "x86_64"),
    ("m6g.large", 2, "arm64"),
    ("m6i.large", 2, "x86_64"),
    ("m6i.xlarge", 4, "x86_64"),
    ("m7g.large", 2, "arm64"),
];

/// AWS gives a default VPC a route to the internet; the emulator leaves it out.
pub(super) async fn open_default_vpc(backend: &Backend) -> anyhow::Result<()> {
    let main = [("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", "vpc-00000001")];
    let table = text_of(&backend.query("ec2", "DescribeRouteTables", &main).await?, "routeTableId")?;
    let route =
        [("RouteTableId", table.as_str()), ("DestinationCidrBlock", "0.0.0.0/0"), ("GatewayId", "igw-00000001")];
    backend.query("ec2", "CreateRoute", &route).await.map(drop)
}

/// `GetServiceQuota`, for the one quota there is.
pub(super) fn quota(shared: &Shared, call: &Call) -> Response {
    let json_error = |code: &str, message: &str| {
        let body = json!({ "__type": code, "Message": message }).to_string();
        (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/x-amz-json-1.1")], body).into_response()
    };
    let body: serde_json::Value = serde_json::from_slice(&call.body).unwrap_or_default();
    if !matches!(call.operation.as_str(), "GetServiceQuota" | "GetAWSDefaultServiceQuota") {
        return json_error("UnknownOperationException", "no such operation");
    }
    if body["ServiceCode"] != "ec2" || body["QuotaCode"] != "L-1216C47A" {
        return json_error(
            "NoSuchResourceException",
            "The request failed because the specified service quota does not exist.",
        );
    }
    let quota =
        json!({ "ServiceCode": "ec2", "QuotaCode": "L-1216C47A", "Value": f64::from(*lock(&shared.vcpu_quota)) });
    let answer = json!({ "Quota": quota }).to_string();
    ([(header::CONTENT_TYPE, "application/x-amz-json-1.1")], answer).into_response()
}

/// `DescribeInstanceTypes`, with the filter by name.
pub(super) fn instance_types(call: &Call) -> Response {
    let wanted: Vec<String> = (1..).map_while(|index| call.field(&format!("Filter.1.Value.{index}"))).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let items: String = TYPES
        .iter()
        .filter(|(name, _, _)| is_wanted(name))
        .map(|(name, vcpus, architecture)| {
            format!(
                "<item><instanceType>{name}</instanceType><vCpuInfo><defaultVCpus>{vcpus}</defaultVCpus></vCpuInfo>\
                 <processorInfo><supportedArchitectures><item>{architecture}</item></supportedArchitectures>\
                 </processorInfo></item>"
            )
        })
        .collect();
    let answer = format!(
        "<DescribeInstanceTypesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <instanceTypeSet>{items}</instanceTypeSet></DescribeInstanceTypesResponse>"
    );
    ([(header::CONTENT_TYPE, "text/xml")], answer).into_response()
}

/// A type that only the first zone has, as new types often begin.
const OF_ONE_ZONE: &str = "m6i.xlarge";

/// `DescribeInstanceTypeOfferings`, with the filters by place and name. A place offers what it is known to offer, and
/// nothing is said of a type that it does not.
///
/// source: `botocore`, `ec2/2016-11-15/service-2.json`, `DescribeInstanceTypeOfferingsRequest`: filters `instance-type` and
/// `location`, whose value is a region's or a zone's name by `LocationType`
pub(super) fn offerings(call: &Call) -> Response {
    let kind = call.field("LocationType").unwrap_or_else(|| "region".to_owned());
    let filter = |wanted: &str| -> Vec<String> {
        let named = |index: &usize| call.field(&format!("Filter.{index}.Name")).as_deref() == Some(wanted);
        let Some(index) = (1..=10).find(named) else { return Vec::new() };
        (1..).map_while(|value| call.field(&format!("Filter.{index}.Value.{value}"))).collect()
    };
    let (names, places) = (filter("instance-type"), filter("location"));
    let is_place = |place: &String| match kind.as_str() {
        "region" => *place == call.region,
        _ => place.strip_prefix(&call.region).is_some_and(|letter| letter.len() == 1),
    };
    // assumption: which zone lacks which type is made up
    let has = |place: &str, name: &str| kind == "region" || name != OF_ONE_ZONE || place.ends_with('a');
    let places = match (places.is_empty(), kind.as_str()) {
        (false, _) => places,
        (true, "region") => vec![call.region.clone()],
        (true, _) => ["a", "b", "c", "d", "e", "f"].map(|zone| format!("{}{zone}", call.region)).to_vec(),
    };
    let offered = places.iter().filter(|place| is_place(place)).flat_map(|place| {
        let known = TYPES.iter().filter(|(name, ..)| names.is_empty() || names.iter().any(|wanted| wanted == name));
        known.filter(|(name, ..)| has(place, name)).map(move |(name, ..)| (name, place))
    });
    let items: String = offered
        .map(|(name, place)| {
            format!(
                "<item><instanceType>{name}</instanceType><locationType>{kind}</locationType><location>{place}</location>\
                 </item>"
            )
        })
        .collect();
    let answer = format!(
        "<DescribeInstanceTypeOfferingsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <instanceTypeOfferingSet>{items}</instanceTypeOfferingSet></DescribeInstanceTypeOfferingsResponse>"
    );
    ([(header::CONTENT_TYPE, "text/xml")], answer).into_response()
}
