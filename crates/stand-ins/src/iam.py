# Answers what policies come to, by the evaluator that the emulator enforces them with: its SimulateCustomPolicy takes no
# condition's context. Questions come as JSON on stdin, answers go as JSON to stdout.
import json
import sys

from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

asked = json.load(sys.stdin)
policies = [parse_policy_document(document) for document in asked["policies"]]
limits = [[parse_policy_document(document)] for document in asked["boundaries"]]


def answer(question):
    context = {name.lower(): value for name, value in question["context"].items()}
    request = EvalContext(
        principal_arn=asked["principal"],
        principal_type="AssumedRole",
        principal_account=asked["account"],
        action=question["action"],
        resource_arn=question["resource"],
        region=asked["region"],
        source_ip="127.0.0.1",
        secure_transport=True,
        service_context=context,
    )
    return evaluate(request, policies, *limits).decision


json.dump([answer(question) for question in asked["questions"]], sys.stdout)
