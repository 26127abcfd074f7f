//! Mapping files that are wrong by themselves: what the user reads about each.

use std::fs;

use tailwater::diagnostic::SourceFile;
use tailwater::mapping::MappingFile;
use tailwater::mapping::offline::resolve_offline;

use super::{config, headed, parse};

/// The text, parsed and checked without databases; what was found, drawn.
fn rendered(text: &str) -> String {
    match MappingFile::parse(SourceFile::new("m.toml", text)) {
        Ok(file) => resolve_offline(&config(), &[file]).render(false),
        Err(findings) => findings.render(false),
    }
}

/// Each of `expected` is in the findings that a table with these lines gives.
fn check(lines: &str, expected: &[&str]) {
    let text = headed(&format!("[table.\"dwh.d\"]\nfrom = \"public.course\"\n{lines}\n"));
    let rendered = rendered(&text);
    for part in expected {
        assert!(rendered.contains(part), "{lines}\n-- expected --\n{part}\n-- found --\n{rendered}");
    }
}

#[test]
fn a_misspelt_key_is_drawn_with_its_caret() {
    let text = headed("[table.\"dwh.d\"]\nform = \"public.course\"\ncolumns = \"*\"\n");
    let expected = "\
error: unknown key \"form\" in [table.\"dwh.d\"]
 --> m.toml:4:1
  |
4 | form = \"public.course\"
  | ^^^^ no such key
  |
  = hint: did you mean \"from\"?";
    let rendered = rendered(&text);
    assert!(rendered.contains(expected), "{rendered}");
    assert!(rendered.contains("[table.\"dwh.d\"] has no \"from\""), "{rendered}");
}

#[test]
fn every_slip_has_its_finding() {
    let cases: &[(&str, &[&str])] = &[
        ("columns = \"all\"", &["\"columns\" is \"*\" or a table of columns", "m.toml:5:11"]),
        ("columns = 1", &["\"columns\" must be a table", "this is an integer"]),
        ("columns = {}", &["\"columns\" maps no column"]),
        ("columns = { a = 1 }", &["column \"a\" must be a source column's name or a table", "{ value = … }"]),
        ("columns = { a = { sq = \"x\" } }", &["unknown key \"sq\" in column \"a\"", "did you mean \"sql\"?"]),
        ("columns = { a = { sql = \"x\", value = 1 } }", &["column \"a\" comes from two places"]),
        ("columns = { a = { type = \"text\" } }", &["column \"a\" says not where it comes from"]),
        ("columns = { a = { meta = \"comit_ts\" } }", &["\"meta\" must be one of", "did you mean \"commit_ts\"?"]),
        ("columns = { a = { value = [1] } }", &["\"value\" must be a single constant"]),
        ("columns = { a = { json = \"p..x\" } }", &["\"json\" must be a column and a path with dots"]),
        ("columns = { \"*\" = false }", &["\"*\" among columns must be true"]),
        ("columns = { a = { sql = \"\" } }", &["\"sql\" is not one expression: it is empty"]),
        ("columns = { a = { sql = \"f(a\" } }", &["a parenthesis is not closed", "m.toml:5:27"]),
        ("columns = { a = { sql = \"a; drop\" } }", &["a semicolon stands in it", "m.toml:5:27"]),
        ("columns = \"*\"\nwhere = \"a = 'x\"", &["\"where\" is not one expression", "m.toml:6:14"]),
        ("columns = { a = \"a\" }\nrename = { b = \"c\" }", &["\"rename\" is used only with `columns = \"*\"`"]),
        ("columns = { a = \"a\" }\nexclude = [\"c\"]", &["\"exclude\" is used only with `columns = \"*\"`"]),
        ("columns = \"*\"\nexclude = \"c\"", &["\"exclude\" must be a list of strings", "this is a string"]),
        ("columns = \"*\"\nexclude = [\"c\", \"c\"]", &["\"c\" is named twice"]),
        ("columns = \"*\"\nmask = { email = \"sha265\" }", &["\"email\" must be one of \"sha256\"", "did you mean"]),
        ("columns = \"*\"\nmode = \"scd2\"", &["mode \"scd2\" is not supported by this build"]),
        ("columns = \"*\"\nmode = \"upsrt\"", &["\"mode\" must be one of", "did you mean \"upsert\"?"]),
        ("columns = \"*\"\ndelete = true", &["\"delete\" must be a string", "this is a boolean"]),
        ("columns = \"*\"\ndeleted_column = \"x\"", &["\"deleted_column\" is used only with delete \"soft\""]),
        ("columns = \"*\"\nmode = \"append\"\ndelete = \"soft\"", &["delete \"soft\" needs a key"]),
        ("columns = { a = \"a\" }\nkey = [\"aa\"]", &["the key's column \"aa\" is not mapped", "did you mean \"a\"?"]),
        ("columns = \"*\"\nkey = []", &["\"key\" names no column"]),
        (
            "columns = { x = \"a\" }\ndelete = \"soft\"\ndeleted_column = \"x\"",
            &["is the deleted column, and mapped too"],
        ),
    ];
    for (lines, expected) in cases {
        check(lines, expected);
    }
}

#[test]
fn whole_files_can_be_wrong() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["names no source", "names no sink"]),
        ("source = \"lms\"\nsink = \"warehouse\"\n", &["the mapping file maps nothing"]),
        (
            "source = \"lsm\"\nsink = \"warehouse\"\n[view.\"a.b\"]\n",
            &["source \"lsm\" is not in the", "did you mean \"lms\"?"],
        ),
        (
            "source = \"lms\"\nsink = \"kafka\"\n[view.\"a.b\"]\n",
            &["sink \"kafka\" is not in the", "add `[sink.kafka]`"],
        ),
        ("source = [\"lms\", \"lms\"]\nsink = \"warehouse\"\n", &["\"lms\" is named twice", "m.toml:1:18"]),
        ("source = []\nsink = 1\n", &["\"source\" names nothing", "\"sink\" must be a string or a list of strings"]),
        ("[mart.\"dwh.f\"]\nkey = []\n", &["[mart] is not supported by this build", "m.toml:1:2"]),
        ("[topic]\n", &["[topic] names no \"tables\"", "m.toml:1:2"]),
        ("[topic]\ntables = \"course\"\n", &["\"course\" is not schema.table", "m.toml:2:10"]),
        ("[topic]\ntables = \"a.*\"\nname = \"{tabel}\"\n", &["a placeholder that is not known", "{table}"]),
        ("[topic]\ntables = \"a.*\"\npartitions = 0\n", &["\"partitions\" is a number from 1", "m.toml:3:14"]),
        (
            "[topic]\ntables = \"a.*\"\nskipped_operations = \"c,x\"\n",
            &["\"x\" is no operation to skip", "m.toml:3:22"],
        ),
        ("[topic]\ntables = \"a.*\"\ndecimal_handling_mode = \"strng\"\n", &["did you mean \"string\"?"]),
        (
            "source = \"lms\"\nsink = \"events\"\n[topic]\ntables = \"a.*\"\nformat = \"avro\"\n",
            &["sink \"events\" has no \"schema_registry\"", "add `schema_registry = { url = ", "m.toml:3:2"],
        ),
        ("[tabel.\"a.b\"]\n", &["unknown key \"tabel\" in the mapping file", "did you mean \"table\"?"]),
        ("[table.course]\n", &["\"course\" is not schema.name", "write the schema and the name in one string"]),
        ("[view.\"a.b\"]\nrefresh = \"concurently\"\n", &["did you mean \"concurrently\"?"]),
        ("[view.\"a.b\"]\nevery = \"10\"\n", &["\"every\" is not a duration", "m.toml:2:9"]),
        ("source = \"lms\nsink = 1\n", &["error: invalid TOML", "m.toml:1:"]),
        ("a = 1\na = 2\n", &["invalid TOML: duplicate key", "m.toml:2:1"]),
        ("a = 99999999999999999999\n", &["the integer does not fit 64 bits"]),
    ];
    for (text, expected) in cases {
        let rendered = rendered(text);
        for part in *expected {
            assert!(rendered.contains(part), "{text}\n-- expected --\n{part}\n-- found --\n{rendered}");
        }
    }
}

#[test]
fn all_findings_of_a_file_come_at_once() {
    let text = "[table.\"a.b\"]\nform = 1\nmod = 2\n[table.c]\n[vew.x]\n";
    let findings = MappingFile::parse(SourceFile::new("m.toml", text)).expect_err("wrong");
    let mut codes: Vec<&str> = findings.0.iter().map(|finding| finding.code).collect();
    codes.sort_unstable();
    let expected = [
        "bad-name",
        "missing-key",
        "missing-key",
        "missing-key",
        "missing-key",
        "unknown-key",
        "unknown-key",
        "unknown-key",
    ];
    assert_eq!(codes, expected);
}

#[test]
fn syntax_errors_of_several_lines_are_all_shown() {
    let findings = MappingFile::parse(SourceFile::new("m.toml", "a = \nb = 1\nc = [\n")).expect_err("wrong");
    assert_eq!(findings.0.len(), 2, "{}", findings.render(false));
}

#[test]
fn a_target_mapped_twice_is_found_at_both() {
    let one = "[table.\"dwh.d\"]\nfrom = \"public.a\"\ncolumns = \"*\"\n";
    let first = MappingFile::parse(SourceFile::new("one.toml", headed(one))).expect("well formed");
    let second = MappingFile::parse(SourceFile::new("two.toml", headed(one))).expect("well formed");
    let mut elsewhere = second.clone();
    elsewhere.sinks[0].value = "second".to_owned();
    let rendered = resolve_offline(&config(), &[first.clone(), second]).render(false);
    for part in
        ["one.toml:3:8", "two.toml:3:8", "the other is in one.toml, line 3.", "the other is in two.toml, line 3."]
    {
        assert!(rendered.contains(part), "{part}\n{rendered}");
    }
    assert_eq!(resolve_offline(&config(), &[first, elsewhere]).0.len(), 0, "another sink is another table");
}

#[test]
fn several_sources_must_tell_their_rows_apart() {
    let text = |columns: &str| {
        format!(
            "source = [\"lms\", \"other\"]\nsink = \"warehouse\"\n[table.\"dwh.d\"]\nfrom = \"public.a\"\n{columns}\n"
        )
    };
    let without = rendered(&text("columns = { id = \"id\" }\nkey = [\"id\"]"));
    assert!(without.contains("its key does not say which"), "{without}");
    assert!(without.contains("add a column `{ meta = \"source\" }`"), "{without}");
    let outside = rendered(&text("columns = { id = \"id\", src = { meta = \"source\" } }\nkey = [\"id\"]"));
    assert!(outside.contains("put \"src\" into the key."), "{outside}");
    let inside = rendered(&text("columns = { id = \"id\", src = { meta = \"source\" } }\nkey = [\"src\", \"id\"]"));
    assert_eq!(inside, "");
}

#[test]
fn a_mask_needs_a_salt() {
    let mut config = config();
    config.mask_salt = None;
    let file = parse(&headed("[table.\"a.b\"]\nfrom = \"a.b\"\ncolumns = \"*\"\nmask = { email = \"sha256\" }\n"));
    let rendered = resolve_offline(&config, &[file]).render(false);
    assert!(rendered.contains("\"mask\" needs a salt"), "{rendered}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_finding() {
    let mut config = config();
    config.mappings = vec!["missing/m.toml".into()];
    let findings = tailwater::mapping::load(&config).expect_err("missing");
    assert!(findings.render(false).contains("cannot read \"missing/m.toml\": no such file"));
    assert!(fs::metadata("missing").is_err(), "nothing is created");
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_never_panics(text: String, lines in "(\\[table.\"a.b\"\\]\n|columns = |\\{|\\}|a = |sql|=|\"|\\*|\n|1|é|\\[|\\]|,)*") {
        let _ = MappingFile::parse(SourceFile::new("m.toml", text));
        let _ = rendered(&lines);
    }
}
