//! The roles of infra/pipeline.yaml, as an administrator makes them for the organization `acme`.

use kiln_stand_ins::iam::Policies;
use kiln_stand_ins::template::Template;

use crate::template;

/// The policy that limits every role of Kiln's stacks.
pub(crate) const BOUNDARY: &str = "arn:aws:iam::000000000000:policy/kiln-acme-boundary";
/// Every role that a pipeline takes, and the one that CloudFormation acts by for them.
pub(crate) const ROLES: [&str; 6] = ["StatusRole", "BakeRole", "DeployRole", "PruneRole", "RotateKeyRole", "StackRole"];
/// The ones whose rights depend on where the App's key is.
pub(crate) const KEY_STORES: [&str; 3] = ["kms", "secrets-manager", "both"];

/// The pipelines' stack, with the parameters that have no default, and more.
pub(crate) fn pipeline(more: &[(&str, &str)]) -> Template {
    let parameters = [
        ("Prefix", "kiln-acme"),
        ("StatusSubject", "repo:acme/runners:environment:status,repo:acme@1/runners@2:environment:status"),
        ("BakeSubject", "repo:acme/runners:environment:bake"),
        ("DeploySubject", "repo:acme/runners:environment:deploy"),
        ("PruneSubject", "repo:acme/runners:environment:prune"),
        ("RotateKeySubject", "repo:acme/runners:environment:rotate-key"),
        ("RotateKeyPolicy", "arn:aws:iam::000000000000:policy/rotate-key"),
    ];
    let outputs = [("StackRole", "arn:aws:iam::000000000000:role/kiln-acme-cloudformation"), ("Boundary", BOUNDARY)];
    let outputs = outputs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    template("pipeline.yaml", "pipelines-of-kiln-acme", &[&parameters[..], more].concat()).with_outputs(outputs)
}

/// What a role may do, where the App's key is in KMS.
pub(crate) fn policies(role: &str) -> Policies {
    policies_with(role, &[])
}

/// The same with other parameters.
pub(crate) fn policies_with(role: &str, more: &[(&str, &str)]) -> Policies {
    let mut documents = pipeline(more).policies(role).unwrap();
    if role == "RotateKeyRole" {
        // Of a stack of its own, named by its ARN.
        let template = template("rotate-key.yaml", "rotate-key-of-kiln-acme", &[("Prefix", "kiln-acme")]);
        let (_, properties) = template.resources().unwrap().remove("Policy").unwrap();
        documents.push(properties["PolicyDocument"].clone());
    }
    assert!(!documents.is_empty(), "{role} has policies");
    Policies::new(documents)
}
