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

/// `DescribeInstanceTypeOfferings` by zone, with the filter by name.
// source: botocore ec2 DescribeInstanceTypeOfferings (`LocationType`, `InstanceTypeOfferings`)
// assumption: which zone lacks which type is made up
pub(super) fn offerings(call: &Call) -> Response {
    let wanted: Vec<String> = (1..).map_while(|index| call.field(&format!("Filter.1.Value.{index}"))).collect();
    let mut items = String::new();
    for (name, ..) in TYPES.iter().filter(|(name, ..)| wanted.iter().any(|wanted| wanted == name)) {
        let zones = if *name == OF_ONE_ZONE { &["a"][..] } else { &["a", "b", "c", "d", "e", "f"] };
        for zone in zones {
            let location = format!("{}{zone}", call.region);
            items.push_str(&format!(
                "<item><instanceType>{name}</instanceType><locationType>availability-zone</locationType>\
                 <location>{location}</location></item>"
            ));
        }
    }
    let answer = format!(
        "<DescribeInstanceTypeOfferingsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <instanceTypeOfferingSet>{items}</instanceTypeOfferingSet></DescribeInstanceTypeOfferingsResponse>"
    );
    ([(header::CONTENT_TYPE, "text/xml")], answer).into_response()
}
