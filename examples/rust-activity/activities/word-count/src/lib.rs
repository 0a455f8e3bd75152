//! An activity in Rust: counts words. The whole contract with Loom is the two imports below and the export `run`.
use serde_json::{json, Value};
use std::collections::BTreeMap;

#[link(wasm_import_module = "loom")]
extern "C" {
    fn op(name: *const u8, name_len: usize, arg: *const u8, arg_len: usize) -> i32;
    fn take(dst: *mut u8);
}

/// Runs an op: its result, or the error `{"code", "message", "retryable"}`.
fn call(name: &str, arg: &Value) -> Result<Value, Value> {
    let arg = arg.to_string();
    let n = unsafe { op(name.as_ptr(), name.len(), arg.as_ptr(), arg.len()) };
    let len = if n >= 0 { n } else { -1 - n } as usize;
    let mut text = vec![0; len];
    unsafe { take(text.as_mut_ptr()) };
    let value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    if n >= 0 { Ok(value) } else { Err(value) }
}

fn count(input: &Value) -> Result<Value, Value> {
    let text = input["text"].as_str().unwrap_or("").to_lowercase();
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_insert(0) += 1;
    }
    match counts.values().sum::<i64>() {
        0 => Err(json!({"code": "empty", "message": "the text has no words", "retryable": false})),
        words => Ok(json!({"words": words, "counts": counts})),
    }
}

#[no_mangle]
pub extern "C" fn run() {
    let _ = match call("input", &Value::Null).and_then(|input| count(&input)) {
        Ok(result) => call("return", &result), // these two do not come back
        Err(error) => call("fail", &error),
    };
}
