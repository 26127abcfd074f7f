//! Findings about a user's files: what is wrong, where, and what to do. Plain data, and one renderer.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// A file that the user wrote, kept with its text so that findings can show the line.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceFile {
    pub path: PathBuf,
    pub text: String,
}

impl SourceFile {
    pub fn new(path: impl AsRef<Path>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(SourceFile { path: path.as_ref().to_owned(), text: text.into() })
    }

    /// Line and column of a byte, both from 1, the column in characters.
    pub fn line_column(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// A place in a user's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<SourceFile>,
    /// Bytes of the file's text.
    pub span: Range<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Warning,
    Error,
}

/// One thing that is wrong, or odd.
///
/// Message texts follow Postgres: primary lowercase without a full stop, one line; the hint a sentence. No row value and
/// no secret, ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// A short stable name in kebab case for machines: `unknown-column`.
    pub code: &'static str,
    pub message: String,
    pub place: Option<Place>,
    /// A few words under the caret.
    pub label: Option<String>,
    pub hint: Option<String>,
}

impl Finding {
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Error, code, message: message.into(), place: None, label: None, hint: None }
    }

    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, ..Finding::error(code, message) }
    }

    pub fn at(mut self, file: &Arc<SourceFile>, span: Range<usize>) -> Self {
        self.place = Some(Place { file: file.clone(), span });
        self
    }

    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The finding as compilers show theirs: message, file, line, caret, hint.
    pub fn render(&self, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let path = self.place.as_ref().map(|place| place.file.path.display().to_string()).unwrap_or_default();
        let mut group = level
            .primary_title(&self.message)
            .elements(std::iter::empty::<Snippet<'_, annotate_snippets::Annotation<'_>>>());
        if let Some(place) = &self.place {
            let length = place.file.text.len();
            let start = place.span.start.min(length);
            let mut annotation = AnnotationKind::Primary.span(start..place.span.end.clamp(start, length));
            if let Some(label) = &self.label {
                annotation = annotation.label(label);
            }
            group = group.element(Snippet::source(&place.file.text).path(&path).annotation(annotation));
        }
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.with_name("hint").message(hint));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }

    /// The finding for `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        let (line, column) = match &self.place {
            Some(place) => {
                let (line, column) = place.file.line_column(place.span.start);
                (Some(line), Some(column))
            }
            None => (None, None),
        };
        serde_json::json!({
            "severity": self.severity, "code": self.code, "message": self.message, "label": self.label, "hint": self.hint,
            "file": self.place.as_ref().map(|place| place.file.path.display().to_string()), "line": line, "column": column,
        })
    }
}

/// Everything found in one look: nothing is reported one error at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }

    pub fn render(&self, color: bool) -> String {
        self.0.iter().map(|finding| finding.render(color)).collect::<Vec<_>>().join("\n\n")
    }
}

/// "did you mean": the candidate nearest to what was written, if one is near enough to be a slip of the hand.
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &&str| strsim::damerau_levenshtein(written, candidate);
    let best = candidates.into_iter().min_by_key(near)?;
    (strsim::damerau_levenshtein(written, best) <= 1 + written.chars().count() / 4).then_some(best)
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_shows_file_line_caret_and_hint() {
        let file = SourceFile::new("mappings/retail.toml", "a = 1\ncolumns = { x = \"amount_cents\" }\n");
        let start = file.text.find("\"amount").expect("present");
        let finding = Finding::error("unknown-column", "column \"amount_cents\" does not exist in \"public.orders\"")
            .at(&file, start..start + 14)
            .label("no such column")
            .hint("did you mean \"amount_cent\"?");
        let text = finding.render(false);
        assert!(text.contains("error: column \"amount_cents\" does not exist"), "{text}");
        assert!(text.contains("mappings/retail.toml:2:17"), "{text}");
        assert!(text.contains("^^^^^^^^^^^^^^ no such column"), "{text}");
        assert!(text.contains("hint: did you mean \"amount_cent\"?"), "{text}");
    }

    #[test]
    fn nearest_name_is_offered_only_when_near() {
        assert_eq!(nearest("amuont", ["amount", "id"]), Some("amount"));
        assert_eq!(nearest("zzz", ["amount", "id"]), None);
    }
}
