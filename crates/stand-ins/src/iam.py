# Answers what policies come to, by the evaluator that the emulator enforces them with: its SimulateCustomPolicy takes no
# condition's context. Questions come as JSON on stdin, answers go as JSON to stdout.
import json
import re
import sys

from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

asked = json.load(sys.stdin)
VARIABLE = re.compile(r"\$\{([^}]+)\}")
# A statement with a variable that the request has no value for matches nothing.
# source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html
NOTHING = "\0"


def filled(policy, context):
    """The policy with its variables replaced, which the evaluator takes literally."""
    if isinstance(policy, dict):
        return {name: filled(value, context) for name, value in policy.items()}
    if isinstance(policy, list):
        return [filled(value, context) for value in policy]
    if not isinstance(policy, str):
        return policy
    return VARIABLE.sub(lambda found: str(context.get(found.group(1).lower(), NOTHING)), policy)


has_variables = VARIABLE.search(json.dumps([asked["policies"], asked["boundaries"]])) is not None
parsed = None


def parsed_policies(context):
    global parsed
    if has_variables or parsed is None:
        policies = [parse_policy_document(filled(document, context)) for document in asked["policies"]]
        limits = [[parse_policy_document(filled(document, context))] for document in asked["boundaries"]]
        parsed = (policies, limits)
    return parsed


def answer(question):
    context = {name.lower(): value for name, value in question["context"].items()}
    request = EvalContext(
        # A bucket's policy goes by who asks; of a role's session that is the role.
        # source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html
        principal_arn=context.get("aws:principalarn", asked["principal"]),
        principal_type="AssumedRole",
        principal_account=asked["account"],
        action=question["action"],
        resource_arn=question["resource"],
        region=asked["region"],
        source_ip="127.0.0.1",
        secure_transport=True,
        service_context=context,
    )
    policies, limits = parsed_policies(context)
    return evaluate(request, policies, *limits).decision


json.dump([answer(question) for question in asked["questions"]], sys.stdout)
