//! Images, and what SSM and EC2 know of them.

use std::collections::BTreeMap;

use kiln_config::model::{Architecture, BaseImage};
use kiln_operations::ports::{
    Component, ComponentUse, Distribution, Identity as _, Images as _, Infrastructure, Recipe, ResourceVersion,
};

use crate::fixture;

#[tokio::test]
async fn images_are_found_and_recorded() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let caller = cloud.caller().await.unwrap();
    assert_eq!((caller.partition.as_str(), caller.account.as_str()), ("aws", "000000000000"));

    let base = cloud.newest_base(BaseImage::AmazonLinux2, Architecture::X86_64).await.unwrap();
    let other = cloud.newest_base(BaseImage::AmazonLinux2023, Architecture::X86_64).await.unwrap();
    assert_ne!(base, other);
    assert_eq!(cloud.ami(&base).await.unwrap().unwrap().state, "available");

    let parameter = "/kiln-acme/image/al2-x86-64";
    assert_eq!(cloud.recorded(parameter).await.unwrap(), None);
    for ami in [&base, &base, &other] {
        cloud.record(parameter, ami).await.unwrap();
        assert_eq!(cloud.recorded(parameter).await.unwrap().as_ref(), Some(ami));
    }
    for _ in 0..2 {
        cloud.forget(parameter).await.unwrap();
        assert_eq!(cloud.recorded(parameter).await.unwrap(), None);
    }
    let tags = BTreeMap::from([("kiln:inputs".to_owned(), "aa".to_owned())]);
    cloud.tag_ami(&base, &tags).await.unwrap();
    assert_eq!(cloud.ami(&base).await.unwrap().unwrap().tags["kiln:inputs"], "aa");
    fixture.local.deregister_image(base.as_str()).await.unwrap();
    assert_eq!(cloud.ami(&base).await.unwrap(), None);
    fixture.local.shutdown().await;
}

#[tokio::test]
async fn what_image_builder_has_is_made_once_and_updated_in_place() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let id = ResourceVersion { name: "kiln-greet".to_owned(), version: "1.2.3".to_owned() };
    let document = "\
name: greet
description: Greets.
schemaVersion: '1.0'
phases:
  - name: build
    steps:
      - name: Greet
        action: ExecuteBash
        inputs:
          commands: ['echo hello']
";
    let component = Component { id: id.clone(), document: document.to_owned() };
    let tags = BTreeMap::from([("kiln:managed".to_owned(), "true".to_owned())]);
    assert_eq!(cloud.component(&id).await.unwrap(), None);
    cloud.create_component(&component, &tags).await.unwrap();
    cloud.create_component(&component, &tags).await.unwrap();
    assert_eq!(cloud.component(&id).await.unwrap().as_deref(), Some(document));

    // A recipe is read back as it was written: what differs is somebody else's.
    let recipe = Recipe {
        id: ResourceVersion { name: "kiln Acme_al2-x86_64".to_owned(), version: "1.2.3".to_owned() },
        base: "ami-00000000000000001".parse().unwrap(),
        components: vec![ComponentUse { id, parameters: BTreeMap::new() }],
        volume_gib: 30,
        kms_key: Some("arn:aws:kms:eu-central-1:111122223333:key/mrk-12".parse().unwrap()),
        root_device: "/dev/xvda".to_owned(),
        user_data: None,
    };
    assert_eq!(cloud.recipe(&recipe.id).await.unwrap(), None);
    cloud.create_recipe(&recipe, &tags).await.unwrap();
    cloud.create_recipe(&recipe, &tags).await.unwrap();
    assert_eq!(cloud.recipe(&recipe.id).await.unwrap().as_ref(), Some(&recipe));

    let mut infrastructure = Infrastructure {
        name: "kiln-acme-image-al2-x86_64".to_owned(),
        instance_profile: "kiln-acme-bake".to_owned(),
        instance_types: vec!["m5.large".to_owned()],
        subnet: "subnet-00000001".to_owned(),
        security_groups: vec!["sg-00000001".to_owned()],
        log_bucket: "kiln-acme".to_owned(),
        tags,
        keep_on_failure: false,
    };
    assert_eq!(cloud.infrastructure(&infrastructure.name).await.unwrap(), None);
    for size in ["m5.large", "m5.xlarge"] {
        infrastructure.instance_types = vec![size.to_owned()];
        infrastructure.keep_on_failure = !infrastructure.keep_on_failure;
        cloud.put_infrastructure(&infrastructure).await.unwrap();
        assert_eq!(cloud.infrastructure(&infrastructure.name).await.unwrap().as_ref(), Some(&infrastructure));
    }
    let mut distribution = Distribution {
        name: "kiln-acme-image-al2-x86_64".to_owned(),
        ami_name: "kiln {{ imagebuilder:buildDate }}".to_owned(),
        ami_tags: BTreeMap::new(),
        copy_to: vec!["eu-west-1".parse().unwrap()],
        share_with: vec!["123456789012".parse().unwrap()],
        kms_key: Some("arn:aws:kms:eu-central-1:111122223333:key/mrk-12".parse().unwrap()),
    };
    for value in ["1", "2"] {
        distribution.ami_tags.insert("kiln:managed".to_owned(), value.to_owned());
        cloud.put_distribution(&distribution).await.unwrap();
        assert_eq!(cloud.distribution(&distribution.name).await.unwrap().as_ref(), Some(&distribution));
    }
    fixture.local.shutdown().await;
}
