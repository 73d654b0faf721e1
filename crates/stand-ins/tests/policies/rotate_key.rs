//! The policy of a pipeline that rotates the App's key. It holds a key in its hands, and must not get at any other.

use kiln_stand_ins::iam::{Call, Policies};

use crate::{call, python, template};

const ALIAS: &str = "alias/kiln-acme-app-key";
const SECRET: &str = "secret:kiln-acme/app-key-AbCdEf";

fn policies() -> Policies {
    let template = template("rotate-key.yaml", "kiln-acme-rotate-key", &[("Prefix", "kiln-acme")]);
    let (_, properties) = template.resources().unwrap().remove("Policy").unwrap();
    Policies::new(vec![properties["PolicyDocument"].clone()])
}

/// About a key of the alias given.
fn on_key(action: &str, alias: &str) -> Call {
    call(&format!("kms:{action}"), "kms", "key/1234").with("aws:ResourceTag/kiln:alias", alias)
}

fn create_key(origin: &str, managed: &str) -> Call {
    Call::new("kms:CreateKey", "*")
        .with("aws:RequestTag/kiln:managed", managed)
        .with("aws:RequestTag/kiln:alias", ALIAS)
        .with("kms:KeyOrigin", origin)
        .with("kms:KeyUsage", "SIGN_VERIFY")
}

fn secret(action: &str, name: &str) -> Call {
    call(&format!("secretsmanager:{action}"), "secretsmanager", name)
}

fn sign(alias: &str, algorithm: &str) -> Call {
    on_key("Sign", alias).with("kms:SigningAlgorithm", algorithm)
}

#[test]
fn a_pipeline_rotates_its_own_key_and_touches_no_other() {
    let mut allowed = vec![
        Call::new("kms:ListKeys", "*"),
        create_key("EXTERNAL", "true"),
        sign(ALIAS, "RSASSA_PKCS1_V1_5_SHA_256"),
        on_key("ImportKeyMaterial", ALIAS).with("kms:ExpirationModel", "KEY_MATERIAL_DOES_NOT_EXPIRE"),
        on_key("TagResource", ALIAS).with("aws:TagKeys", "kiln:record"),
        on_key("ScheduleKeyDeletion", ALIAS).with("kms:ScheduleKeyDeletionPendingWindowInDays", "7"),
        secret("DeleteSecret", SECRET).with("secretsmanager:RecoveryWindowInDays", "7"),
        call("cloudformation:DescribeStacks", "cloudformation", "stack/kiln-acme-controller/0a1b"),
        call("cloudformation:DescribeStacks", "cloudformation", "stack/kiln-acme-fleet-linux/0a1b"),
        call("cloudformation:GetTemplate", "cloudformation", "stack/kiln-acme-fleet-linux/0a1b"),
    ];
    let reads = ["DescribeKey", "GetPublicKey", "GetParametersForImport", "ListResourceTags"];
    allowed.extend(reads.map(|action| on_key(action, ALIAS)));
    for action in ["CreateAlias", "UpdateAlias"] {
        allowed.push(on_key(action, ALIAS));
        for name in [ALIAS.to_owned(), format!("{ALIAS}-previous")] {
            allowed.push(call(&format!("kms:{action}"), "kms", &name));
        }
    }
    let kept = [
        "CreateSecret",
        "DescribeSecret",
        "GetSecretValue",
        "ListSecretVersionIds",
        "PutSecretValue",
        "RestoreSecret",
        "TagResource",
        "UpdateSecretVersionStage",
    ];
    allowed.extend(kept.map(|action| secret(action, SECRET)));

    let mut refused = vec![
        create_key("AWS_KMS", "true"),
        create_key("EXTERNAL", "false"),
        sign("alias/kiln-other-app-key", "RSASSA_PKCS1_V1_5_SHA_256"),
        sign(ALIAS, "RSASSA_PSS_SHA_256"),
        // A key that is nobody's of ours.
        call("kms:Sign", "kms", "key/5678"),
        call("kms:UpdateAlias", "kms", "key/5678"),
        call("kms:UpdateAlias", "kms", "alias/kiln-other-app-key"),
        call("kms:UpdateAlias", "kms", "alias/payments"),
        on_key("DeleteAlias", ALIAS),
        // Whose a key is never changes, and no key of others becomes ours.
        on_key("TagResource", ALIAS).with("aws:TagKeys", "kiln:alias"),
        call("kms:TagResource", "kms", "key/5678").with("aws:TagKeys", "kiln:record"),
        call("kms:TagResource", "kms", "key/5678")
            .with("aws:RequestTag/kiln:managed", "true")
            .with("aws:RequestTag/kiln:alias", ALIAS)
            .with("kms:KeyOrigin", "AWS_KMS")
            .with("kms:KeyUsage", "ENCRYPT_DECRYPT"),
        on_key("ScheduleKeyDeletion", "alias/payments").with("kms:ScheduleKeyDeletionPendingWindowInDays", "7"),
        on_key("PutKeyPolicy", ALIAS),
        on_key("CreateGrant", ALIAS),
        on_key("DeleteImportedKeyMaterial", ALIAS),
        on_key("DisableKey", ALIAS),
        secret("DeleteSecret", SECRET).with("secretsmanager:ForceDeleteWithoutRecovery", "true"),
        secret("DeleteSecret", SECRET)
            .with("secretsmanager:RecoveryWindowInDays", "7")
            .with("secretsmanager:ForceDeleteWithoutRecovery", "true"),
        secret("PutResourcePolicy", SECRET),
        secret("GetSecretValue", "secret:kiln-acme/app-key-other-AbCdEf"),
        secret("GetSecretValue", "secret:payments-AbCdEf"),
        call("cloudformation:UpdateStack", "cloudformation", "stack/kiln-acme-fleet-linux/0a1b"),
        call("cloudformation:DescribeStacks", "cloudformation", "stack/kiln-other-fleet-linux/0a1b"),
        Call::new("iam:PassRole", "*"),
    ];
    refused.extend(reads.map(|action| on_key(action, "alias/payments")));
    policies().check(&python(), &allowed, &refused).unwrap();
}
