//! The role of Image Builder's instances, on which packages of all the world are installed.

use kiln_stand_ins::iam::Call;

use crate::{call, check, template};

#[test]
fn a_build_reads_its_payload_and_writes_its_logs_and_its_record_only() {
    let bake = template("bake.yaml", "kiln-acme-bake", &[("BucketName", "kiln-acme"), ("ImagePrefix", "kiln-acme")]);
    let allowed = [
        Call::new("s3:GetObject", "arn:aws:s3:::kiln-acme/payload/0123.tar"),
        Call::new("s3:ListBucket", "arn:aws:s3:::kiln-acme"),
        Call::new("s3:PutObject", "arn:aws:s3:::kiln-acme/logs/build.log"),
        Call::new("s3:PutObject", "arn:aws:s3:::kiln-acme/images/0123/manifest.json"),
    ];
    let refused = [
        Call::new("s3:PutObject", "arn:aws:s3:::kiln-acme/payload/0123.tar"),
        Call::new("s3:GetObject", "arn:aws:s3:::kiln-acme/images/0123/manifest.json"),
        Call::new("s3:DeleteObject", "arn:aws:s3:::kiln-acme/payload/0123.tar"),
        Call::new("s3:GetObject", "arn:aws:s3:::kiln-acme-other/payload/0123.tar"),
        Call::new("s3:PutBucketPolicy", "arn:aws:s3:::kiln-acme"),
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("secretsmanager:GetSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf"),
        call("ssm:PutParameter", "ssm", "parameter/kiln-acme/image/al2023-x86-64"),
        Call::new("iam:PassRole", "arn:aws:iam::000000000000:role/kiln-acme-bake"),
        Call::new("ec2:RunInstances", "*"),
    ];
    check(&bake, "Role", &allowed, &refused);
}
