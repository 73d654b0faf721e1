use super::*;

/// A document with nothing wrong, which each test spoils in one place.
const GOOD: &str = "
name: example
description: An example.
schemaVersion: 1.0
parameters:
  - Source:
      type: string
      description: Where from.
  - Sum:
      type: string
      default: '00'
      description: What it must be.
phases:
  - name: build
    steps:
      - name: Fetch
        action: WebDownload
        maxAttempts: 3
        inputs:
          - source: '{{ Source }}'
            destination: /tmp/file
            checksum: '{{Sum}}'
            algorithm: SHA256
      - name: Look
        action: ExecuteBash
        onFailure: Continue
        timeoutSeconds: 60
        loop:
          name: turn
          for: { start: 1, end: 3, updateBy: 1 }
        inputs:
          commands:
            - 'echo {{ turn.index }}; cat {{ build.Fetch.outputs.destination }}'
  - name: test
    steps:
      - name: Look
        action: Assert
        inputs:
          stringEquals: a
          value: a
";

fn problems(yaml: &str) -> Vec<String> {
    Document::parse(yaml)
        .map(|_| Vec::new())
        .unwrap_or_else(|problems| problems.iter().map(ToString::to_string).collect())
}

/// The problems of the good document with one text in it replaced by another.
fn spoiled(text: &str, by: &str) -> Vec<String> {
    assert_eq!(GOOD.matches(text).count(), 1, "{text:?} is not in the example exactly once");
    problems(&GOOD.replace(text, by))
}

#[test]
fn a_good_document_is_read_whole() {
    let document = Document::parse(GOOD).unwrap();
    assert_eq!(document.parameters["Source"].default, None);
    assert_eq!(document.parameters["Sum"].default.as_deref(), Some("00"));
    let [build, test] = document.phases.as_slice() else { panic!("two phases") };
    assert_eq!((build.name, test.name), (PhaseName::Build, PhaseName::Test));
    let [fetch, look] = build.steps.as_slice() else { panic!("two steps") };
    assert_eq!((fetch.action, fetch.on_failure), (Action::WebDownload, OnFailure::Abort));
    assert_eq!((fetch.max_attempts, fetch.timeout_seconds), (3, 7200));
    assert_eq!((look.on_failure, look.timeout_seconds), (OnFailure::Continue, 60));
    assert_eq!(look.r#loop.as_ref().unwrap().over, LoopOver::For { start: 1, end: 3, update_by: 1 });
}

#[test]
fn every_document_of_ours_is_good_and_every_file_is_listed() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ami/components");
    let mut listed: Vec<String> = COMPONENTS.iter().map(|(name, _)| format!("{name}.yml")).collect();
    let mut found: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    listed.sort();
    found.sort();
    assert_eq!(listed, found);
    for (name, text) in COMPONENTS {
        assert_eq!(problems(text), Vec::<String>::new(), "{name}");
        assert_eq!(Document::parse(text).unwrap().name, format!("kiln-{name}"));
    }
}

#[test]
fn the_components_that_lay_files_down_say_so() {
    let only_files = COMPONENTS.map(|(name, text)| (name, Document::parse(text).unwrap().lays_files_down_only()));
    let expected = [
        ("os", false),
        ("runner", true),
        ("bootstrap", true),
        ("manifest", true),
        ("proof", false),
        ("cleanup", false),
    ];
    assert_eq!(only_files, expected);
}

#[test]
fn scripts_stop_at_their_first_failure() {
    for (name, text) in COMPONENTS {
        for phase in Document::parse(text).unwrap().phases {
            for step in phase.steps.iter().filter(|step| step.action == Action::ExecuteBash) {
                let script = step.inputs["commands"][0].as_str().unwrap();
                assert!(script.starts_with("set -euo pipefail\n"), "{name}, {}, {}", phase.name, step.name);
                assert_eq!(step.inputs["commands"].as_sequence().unwrap().len(), 1, "{name}, {}", step.name);
            }
        }
    }
}

#[test]
fn a_good_document_has_no_problem() {
    assert_eq!(problems(GOOD), Vec::<String>::new());
}

/// The one problem of form of a spoiled document; it has a place.
fn form(text: &str, by: &str) -> String {
    let problems = spoiled(text, by);
    let [problem] = problems.as_slice() else { panic!("not one problem: {problems:#?}") };
    assert!(problem.contains(" at line "), "no place in {problem}");
    problem.clone()
}

#[test]
fn mistakes_of_form_have_a_line_and_name_what_is_known() {
    for (text, by, expected) in [
        ("action: ExecuteBash", "action: ExecuteBsh", "unknown variant `ExecuteBsh`, expected one of `ExecuteBash`"),
        ("onFailure: Continue", "onfailure: Continue", "unknown field `onfailure`, expected one of `name`"),
        ("description: An example.", "description: An example.\nowner: me", "unknown field `owner`"),
        ("name: test", "name: tests", "unknown variant `tests`, expected one of `build`"),
        ("timeoutSeconds: 60", "timeoutSeconds: -1", "a nonzero u32"),
        ("timeoutSeconds: 60", "timeoutSeconds: 0", "a nonzero u32"),
        ("      default: '00'\n", "      default: 0\n", "put it in quotes"),
        ("for: { start: 1, end: 3, updateBy: 1 }", "for: { start: 1, end: 3 }", "missing field `updateBy`"),
    ] {
        let problem = form(text, by);
        assert!(problem.contains(expected), "{by}: {problem}");
    }
    for version in ["2.0", "1", "'1'", "[1.0]"] {
        let problems = spoiled("schemaVersion: 1.0", &format!("schemaVersion: {version}"));
        assert!(problems[0].contains("schemaVersion is not 1.0"), "{problems:?}");
    }
    assert!(spoiled("schemaVersion: 1.0\n", "")[0].contains("missing field `schemaVersion`"));
    assert_eq!(spoiled("schemaVersion: 1.0", "schemaVersion: '1.0'"), Vec::<String>::new());
}

#[test]
fn a_loop_is_one_of_two_kinds() {
    let range = "for: { start: 1, end: 3, updateBy: 1 }";
    assert!(spoiled(range, "forEach: 3")[0].contains("expected a list of strings, or `list` and `delimiter`"));
    assert!(spoiled(range, &format!("{range}\n          forEach: [a]"))[0].contains("one of `for` and `forEach`"));
    assert_eq!(spoiled(range, "forEach: [a, b]"), Vec::<String>::new());
    assert_eq!(spoiled(range, "forEach: { list: 'a,b', delimiter: ',' }"), Vec::<String>::new());
    assert_eq!(spoiled(range, "forEach: []"), ["phases[build].steps[1].loop.forEach: empty"]);
    assert_eq!(spoiled("updateBy: 1", "updateBy: 0"), ["phases[build].steps[1].loop.for.updateBy: 0 never ends"]);
}

#[test]
fn inputs_are_those_of_the_action() {
    let web = "phases[build].steps[0].inputs: ";
    for (text, by, expected) in [
        ("            destination: /tmp/file\n", "", "missing field `destination` of WebDownload"),
        ("            algorithm: SHA256\n", "", "missing field `algorithm` of WebDownload"),
        ("algorithm: SHA256", "algorithm: MD5", "unknown variant `MD5`, expected `SHA256` or `SHA512`"),
        ("destination: /tmp/file", "destination: ''", "a text is empty"),
        (
            "destination: /tmp/file",
            "destination: /tmp/file\n            ignoreCertificateErrors: true",
            "unknown field `ignoreCertificateErrors`",
        ),
    ] {
        let problems = spoiled(text, by);
        assert!(problems[0].starts_with(web) && problems[0].contains(expected), "{by}: {problems:?}");
    }
    let checksum = spoiled("            checksum: '{{Sum}}'\n", "");
    assert!(checksum[0].contains("missing field `checksum`"), "{checksum:?}");
    assert_eq!(checksum[1..], ["parameters[Sum]: declared but never used"]);
    let assert = spoiled("        inputs:\n          stringEquals: a\n          value: a\n", "");
    assert_eq!(assert, ["phases[test].steps[0].inputs: expected a mapping of operators as inputs of Assert"]);
}

#[test]
fn undeclared_reference() {
    let unknown = "is neither a declared parameter, nor an earlier step's, nor its loop's";
    assert_eq!(
        spoiled("'{{ Source }}'", "'{{ Source }}{{ Other }}'"),
        [format!("phases[build].steps[0].inputs[0].source: `{{{{ Other }}}}` {unknown}")]
    );
    // A step that comes later, and the loop of another step.
    assert_eq!(
        spoiled("'{{ Source }}'", "'{{ Source }}{{ build.Look.outputs.stdout }}'"),
        [format!("phases[build].steps[0].inputs[0].source: `{{{{ build.Look.outputs.stdout }}}}` {unknown}")]
    );
    assert_eq!(
        spoiled("'{{ Source }}'", "'{{ Source }}{{ turn.index }}'"),
        [format!("phases[build].steps[0].inputs[0].source: `{{{{ turn.index }}}}` {unknown}")]
    );
    assert_eq!(
        spoiled("'{{ Source }}'", "'{{ Source }}{{ aws:ssm:/name }}'").len(),
        1,
        "a value looked up on the build machine"
    );
    assert_eq!(
        spoiled("'{{ Source }}'", "'{{ Source }}{{ oh'"),
        ["phases[build].steps[0].inputs[0].source: `{{` without `}}`"]
    );
}

#[test]
fn unused_parameter() {
    assert_eq!(spoiled("'{{ Source }}'", "https://example.com"), ["parameters[Source]: declared but never used"]);
}

#[test]
fn wrong_parameter() {
    assert!(
        form("      type: string\n      default: '00'\n", "      type: number\n").contains("unknown variant `number`")
    );
    assert_eq!(problems(&GOOD.replace("Sum", "S!")), ["parameters[S!]: not 3 to 128 letters, digits, - and _"]);
    assert!(problems(&GOOD.replace("Sum", "Source"))[0].contains("parameter Source is declared twice"));
}

#[test]
fn too_long() {
    let long = format!("{GOOD}# {}\n", "é".repeat(MAX_CHARACTERS));
    let characters = long.chars().count();
    assert_eq!(
        problems(&long),
        [format!(".: {characters} characters, more than the 16000 a component may have inline")]
    );
    let bytes_do_not_count = format!("{GOOD}# {}\n", "é".repeat(MAX_CHARACTERS - GOOD.len() - 3));
    assert_eq!(problems(&bytes_do_not_count), Vec::<String>::new());
}

#[test]
fn duplicate_step_name() {
    assert_eq!(
        problems(&GOOD.replacen("name: Look", "name: Fetch", 1)),
        ["phases[build].steps[1].name: `Fetch` names another step of this phase already"]
    );
}

#[test]
fn wrong_phases() {
    assert_eq!(spoiled("name: test", "name: build"), ["phases[build]: there twice"]);
    assert!(problems("name: a\ndescription: b\nschemaVersion: 1.0\n")[0].contains("missing field `phases`"));
    assert_eq!(problems("name: a\ndescription: b\nschemaVersion: 1.0\nphases: []\n"), ["phases: empty"]);
}

#[test]
fn what_is_no_document() {
    assert!(problems("a: [")[0].starts_with(".: "));
    assert!(problems("name: a\nname: b\n")[0].contains("duplicate"));
    assert!(problems("[]")[0].starts_with(".: invalid type: sequence"));
}

#[test]
fn every_mistake_that_is_not_of_form_is_named_at_once() {
    let all = problems(
        "name: ''\ndescription: ''\nschemaVersion: 1.0\nphases:\n  - name: build\n    steps:\n      - { name: '', action: Assert }\n",
    );
    assert_eq!(all.len(), 4, "{all:#?}");
}
