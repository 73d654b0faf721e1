//! What AWS refuses, by the kinds that an operator mends in different ways.

use std::collections::BTreeMap;
use std::error::Error as _;

use kiln_config::model::Region;
use kiln_operations::ports::{CloudErrorKind, Identity as _, StackRequest, Stacks as _};

use crate::{config, fixture};

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_unreachable() {
    let region: Region = "eu-central-1".parse().unwrap();
    let cloud = kiln_aws::Aws::new(&region, &config("http://127.0.0.1:9").await);
    let error = cloud.caller().await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unreachable);
    assert!(error.to_string().ends_with("in eu-central-1"), "{error}");
}

#[tokio::test]
async fn a_template_that_is_none_is_refused_in_the_services_own_words() {
    let fixture = fixture().await;
    let request = StackRequest {
        name: "kiln-acme-bake".to_owned(),
        template: "Resources: [".to_owned(),
        parameters: BTreeMap::new(),
        tags: BTreeMap::new(),
    };
    let error = fixture.cloud.change_set(&request).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Invalid, "{error:?}");
    assert!(error.to_string().contains("kiln-acme-bake"), "{error}");
    assert!(error.source().is_some());
    fixture.local.shutdown().await;
}
