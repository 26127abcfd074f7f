//! Files stay readable: none too long, each says first what it is, nothing is left half done.

use std::fs;
use std::path::Path;

/// STYLE: target 300 lines, ceiling 450.
const LINES_MAX: usize = 450;

pub struct SourceFile {
    /// From the repository's root.
    pub path: String,
    pub text: String,
}

/// Every Rust file below a directory of the repository.
pub fn source_files(directory: &str) -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut open = vec![root.join(directory)];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.map(|entry| entry.expect("a directory can be read").path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
                let path = path.strip_prefix(root).expect("it was found below the root");
                files.push(SourceFile { path: path.display().to_string(), text });
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

fn all_files() -> Vec<SourceFile> {
    ["src", "tests", "benches"].into_iter().flat_map(source_files).collect()
}

/// Fails with every file that a rule finds fault with.
fn check(files: &[SourceFile], fault: impl Fn(&SourceFile) -> Option<String>) {
    let faults: Vec<String> =
        files.iter().filter_map(|file| Some(format!("{}: {}", file.path, fault(file)?))).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    check(&all_files(), |file| {
        let count = file.text.lines().count();
        (count > LINES_MAX).then(|| format!("{count} lines, the ceiling is {LINES_MAX}"))
    });
}

#[test]
fn every_file_says_what_it_is() {
    check(&all_files(), |file| (!file.text.starts_with("//! ")).then(|| "does not open with //!".to_owned()));
}

#[test]
fn nothing_is_left_half_done() {
    // Put together here, or this file would be found itself.
    let left =
        [["to", "do!("], ["unimple", "mented!("], ["db", "g!("], ["#[ig", "nore"], ["// TO", "DO"], ["// FIX", "ME"]]
            .map(|halves| halves.concat());
    check(&all_files(), |file| {
        let found = left.iter().find(|word| file.text.contains(word.as_str()))?;
        Some(format!("has {found}"))
    });
}
