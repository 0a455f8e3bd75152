//! The C libraries, kept by naming them, JSON Schema behind three C functions, what Wasmtime's C API lacks (see loomdeps.h).
use std::ffi::{c_char, c_int, c_void};
use std::fmt::Write;
use std::sync::OnceLock;
use std::task::Poll;

extern crate libsqlite3_sys;
pub use wasmtime_c_api::*;
extern crate yyjson_sys;

const ERRORS_SHOWN: usize = 5;
const MESSAGE_LEN_MAX: usize = 200;

/// Lets the pool ask the kernel (Linux 6.7 and later) which pages a guest has changed, so that it resets these only.
/// False: this kernel cannot tell. The C type is a struct of this one member.
#[no_mangle]
pub unsafe extern "C" fn loom_pool_scan(config: *mut wasmtime_pooling_allocation_config_t) -> bool {
    let config = &mut *config.cast::<wasmtime::PoolingAllocationConfig>();
    config.pagemap_scan(wasmtime::Enabled::Auto);
    wasmtime::PoolingAllocationConfig::is_pagemap_scan_available()
}

/// A trap tells so many functions by name, the innermost first, and no addresses: looking these up in a compiled module was
/// most of what it cost to end a guest. The C type is a struct of this one member.
#[no_mangle]
pub unsafe extern "C" fn loom_trap_names(config: *mut wasm_config_t, frames: usize) {
    let config = &mut *config.cast::<wasmtime::Config>();
    config.generate_address_map(false).wasm_backtrace_max_frames(std::num::NonZeroUsize::new(frames));
}

type Ask = extern "C" fn(*mut wasmtime_caller_t, u32, u32, u32, u32) -> *mut c_void;
type State = extern "C" fn(*mut c_void, &mut i32) -> c_int;

/// The error that ends a guest which waits. Wasmtime would give it a backtrace, which costs more than the rest of a guest's
/// end, were it not one already: an empty one, from an engine that makes no others.
fn over() -> wasmtime::Error {
    static NAMELESS: OnceLock<wasmtime::Store<()>> = OnceLock::new();
    let store = NAMELESS.get_or_init(|| {
        let mut config = wasmtime::Config::new();
        config.enable_compiler(false).wasm_backtrace_max_frames(None);
        wasmtime::Store::new(&wasmtime::Engine::new(&config).expect("an engine"), ())
    });
    wasmtime::Error::msg(wasmtime::WasmBacktrace::capture(store))
}

/// Defines the import loom.op. The C types of linker and caller are structs of this one member.
#[no_mangle]
pub unsafe extern "C" fn loom_link_op(linker: *mut wasmtime_linker_t, ask: Ask, state: State) {
    let linker = &mut *linker.cast::<wasmtime::Linker<WasmtimeStoreData>>();
    let defined = linker.func_wrap_async("loom", "op", move |mut caller: WasmtimeCaller, (name, name_len, arg, arg_len)| {
        let asked = ask((&raw mut caller).cast(), name, name_len, arg, arg_len) as usize; // a pointer could not change threads
        Box::new(std::future::poll_fn(move |_| {
            let mut code = 0;
            match state(asked as *mut c_void, &mut code) {
                0 => Poll::Pending,
                1 => Poll::Ready(Ok(code)),
                2 => Poll::Ready(Err(wasmtime::Error::msg("trap"))),
                _ => Poll::Ready(Err(over())),
            }
        }))
    });
    defined.expect("loom.op is defined once");
}

/// Copies the text, cut at a character's border, into the caller's buffer and terminates it.
unsafe fn report(text: &str, err: *mut c_char, err_cap: usize) {
    if err.is_null() || err_cap == 0 {
        return;
    }
    let end = text.floor_char_boundary(err_cap - 1);
    std::ptr::copy_nonoverlapping(text.as_ptr(), err.cast::<u8>(), end);
    *err.add(end) = 0;
}

unsafe fn parse(json: *const c_char, len: usize) -> Result<serde_json::Value, String> {
    let bytes = if len == 0 { &[][..] } else { std::slice::from_raw_parts(json.cast::<u8>(), len) };
    serde_json::from_slice(bytes).map_err(|e| format!("not valid JSON: {e}"))
}

/// "/path: message"; a message about the root stands alone.
fn line(error: &jsonschema::ValidationError) -> String {
    let path = error.instance_path().as_str();
    let separator = if path.is_empty() { "" } else { ": " };
    let message = error.to_string();
    let end = message.floor_char_boundary(MESSAGE_LEN_MAX);
    let more = if end < message.len() { "…" } else { "" };
    format!("{path}{separator}{}{more}", &message[..end])
}

fn compile(schema: &serde_json::Value) -> Result<jsonschema::Validator, String> {
    jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .offline()
        .build(schema)
        .map_err(|e| line(&e))
}

#[no_mangle]
pub unsafe extern "C" fn loom_schema_new(
    json: *const c_char, len: usize, err: *mut c_char, err_cap: usize,
) -> *mut jsonschema::Validator {
    match parse(json, len).and_then(|schema| compile(&schema)) {
        Ok(validator) => Box::into_raw(Box::new(validator)),
        Err(text) => {
            report(&text, err, err_cap);
            std::ptr::null_mut()
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn loom_schema_check(
    schema: *const jsonschema::Validator, json: *const c_char, len: usize, err: *mut c_char, err_cap: usize,
) -> c_int {
    let value = match parse(json, len) {
        Ok(value) => value,
        Err(text) => {
            report(&text, err, err_cap);
            return -1;
        }
    };
    if (*schema).is_valid(&value) {
        return 0;
    }
    let mut text = String::new();
    for error in (*schema).iter_errors(&value).take(ERRORS_SHOWN) {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(text, "{separator}{}", line(&error));
    }
    report(&text, err, err_cap);
    -1
}

#[no_mangle]
pub unsafe extern "C" fn loom_schema_free(schema: *mut jsonschema::Validator) {
    if !schema.is_null() {
        drop(Box::from_raw(schema));
    }
}
