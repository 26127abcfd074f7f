//! Modules import from floors above them, as `src/lib.rs` lists them, never from below.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::{SourceFile, source_files};

/// The parts of `sink` that are edges; the rest of it is the contract, one floor above.
const EDGES: [&str; 6] =
    ["src/sink/any", "src/sink/clickhouse", "src/sink/http", "src/sink/kafka", "src/sink/load", "src/sink/postgres"];

/// The modules with their floor's number.
fn floors() -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).expect("src/lib.rs exists");
    let mut floors = BTreeMap::new();
    let mut floor = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("// Floor ") {
            floor = rest.split(':').next().and_then(|number| number.parse().ok());
        }
        let module = line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "));
        if let Some(module) = module.and_then(|rest| rest.strip_suffix(';')) {
            floors.insert(module.to_owned(), floor.unwrap_or_else(|| panic!("module {module} stands on no floor")));
        }
    }
    floors
}

/// The modules named right after each `crate::` of code, tests and comments aside.
fn imports(file: &SourceFile) -> BTreeSet<String> {
    let tests = file.text.find("\n#[cfg(test)]\nmod ").unwrap_or(file.text.len());
    let code: String =
        file.text[..tests].lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and `other_crate::` are not ours.
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads(group)),
            None => found.extend(head(rest)),
        }
    }
    found
}

fn head(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The first names of the paths in a group of which the opening brace was taken off.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                heads.extend(head(group[start..at].trim()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads
}

#[test]
fn imports_go_up_never_down() {
    let floors = floors();
    assert!(floors.len() > 10, "src/lib.rs lists its modules under \"// Floor N\"");
    let mut wrong = Vec::new();
    for file in source_files("src") {
        let module = file.path.strip_prefix("src/").unwrap_or(&file.path).split(['/', '.']).next().unwrap_or_default();
        // lib.rs and main.rs stand below all floors.
        let Some(mut own) = floors.get(module) else { continue };
        // Of `sink`, the contract stands on floor 3 and each sink, an edge, one below.
        let is_edge = EDGES.iter().any(|edge| file.path.starts_with(edge));
        if is_edge {
            own = &floors["postgres"];
        } else if *own < floors["postgres"] {
            for edge in EDGES {
                let path = edge.replace("src/", "crate::").replace('/', "::");
                if file.text.contains(&path) {
                    wrong.push(format!("{} (floor {own}) imports {path}", file.path));
                }
            }
        }
        for import in imports(&file).iter().filter(|import| *import != module) {
            if floors.get(import).is_some_and(|floor| floor > own) {
                wrong.push(format!("{} (floor {own}) imports {import} (floor {})", file.path, floors[import]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_kind_of_import_is_seen() {
    let text = "use crate::lsn::Lsn;\nuse crate::{batch, sink::{self, Sink}, wire};\n// crate::no\n\
                fn f() -> crate::retry::Retry { $crate::no() }\n#[cfg(test)]\nmod tests { use crate::no; }\n";
    let file = SourceFile { path: "src/x.rs".to_owned(), text: text.to_owned() };
    let found: Vec<String> = imports(&file).into_iter().collect();
    assert_eq!(found, ["batch", "lsn", "retry", "sink", "wire"]);
}
