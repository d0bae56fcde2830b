use proptest::prelude::*;
use serde_json::Value;

use super::*;

#[test]
fn what_lies_between_stays() {
    let body = r#"{ "a" : 1.0, "b":"x y" , "c":[ ]}"#;
    let text = body.find("\"x y").expect("it is there");
    let mut edits = Edits::default();
    edits.replace(text..text + 5, &b"\"new\""[..], "b");
    edits.replace(1..1, &b"\"z\":0,"[..], "z");
    edits.remove(1..12, "a");
    edits.sort();
    assert_eq!(edits.splices().iter().map(|splice| splice.cause).collect::<Vec<_>>(), ["z", "a", "b"]);
    assert_eq!(edits.apply(body.as_bytes()), r#"{"z":0, "b":"new" , "c":[ ]}"#);
    assert_eq!(edits.length(body.as_bytes(), 0), edits.apply(body.as_bytes()).len());
}

#[test]
fn white_space_goes_outside_strings_only() {
    let body = "{ \"a b\" :\t[ 1 , \" \\\" \\\\\" ] ,\r\n \"c\" : {} }\n";
    let mut edits: Edits = Edits::default();
    assert_eq!(edits.apply(body.as_bytes()), body);
    edits.minify(true);
    assert_eq!(edits.apply(body.as_bytes()), r#"{"a b":[1," \" \\"],"c":{}}"#);
    assert_eq!(edits.blanks(body.as_bytes()), body.len() - r#"{"a b":[1," \" \\"],"c":{}}"#.len());
    edits.replace(body.find('[').unwrap_or(0)..body.find(']').unwrap_or(0) + 1, &b" 1 "[..], ());
    assert_eq!(edits.apply(body.as_bytes()), r#"{"a b": 1 ,"c":{}}"#, "what was put in is as it was told");
}

proptest! {
    #[test]
    fn minified_is_the_same_value(text in any::<Vec<String>>(), indent in "[ \t\r\n]{0,4}") {
        let value = Value::from(text);
        let spaced = value.to_string().replace("\",\"", &format!("\"{indent},{indent}\""));
        // A string may spell the same three bytes: then it has changed too, and so has the value.
        let before: Value = serde_json::from_str(&spaced).unwrap_or(Value::Null);
        prop_assume!(before == value);
        let mut edits: Edits = Edits::default();
        edits.minify(true);
        let after = edits.apply(spaced.as_bytes());
        prop_assert_eq!(after, value.to_string());
    }
}
