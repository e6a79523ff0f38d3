"""A component for ``wasi:http/proxy`` as a text: what it does is told by the first letter of the path."""

from __future__ import annotations

from typing import Final

_ERROR_CODE: Final = """
  (type $dns' (record (field "rcode" (option string)) (field "info-code" (option u16))))
  (export "DNS-error-payload" (type $dns (eq $dns')))
  (type $tls' (record (field "alert-id" (option u8)) (field "alert-message" (option string))))
  (export "TLS-alert-received-payload" (type $tls (eq $tls')))
  (type $size' (record (field "field-name" (option string)) (field "field-size" (option u32))))
  (export "field-size-payload" (type $size (eq $size')))
  (type $code' (variant
    (case "DNS-timeout") (case "DNS-error" $dns) (case "destination-not-found") (case "destination-unavailable")
    (case "destination-IP-prohibited") (case "destination-IP-unroutable") (case "connection-refused")
    (case "connection-terminated") (case "connection-timeout") (case "connection-read-timeout")
    (case "connection-write-timeout") (case "connection-limit-reached") (case "TLS-protocol-error")
    (case "TLS-certificate-error") (case "TLS-alert-received" $tls) (case "HTTP-request-denied")
    (case "HTTP-request-length-required") (case "HTTP-request-body-size" (option u64))
    (case "HTTP-request-method-invalid") (case "HTTP-request-URI-invalid") (case "HTTP-request-URI-too-long")
    (case "HTTP-request-header-section-size" (option u32)) (case "HTTP-request-header-size" (option $size))
    (case "HTTP-request-trailer-section-size" (option u32)) (case "HTTP-request-trailer-size" $size)
    (case "HTTP-response-incomplete") (case "HTTP-response-header-section-size" (option u32))
    (case "HTTP-response-header-size" $size) (case "HTTP-response-body-size" (option u64))
    (case "HTTP-response-trailer-section-size" (option u32)) (case "HTTP-response-trailer-size" $size)
    (case "HTTP-response-transfer-coding" (option string)) (case "HTTP-response-content-coding" (option string))
    (case "HTTP-response-timeout") (case "HTTP-upgrade-failed") (case "HTTP-protocol-error") (case "loop-detected")
    (case "configuration-error") (case "internal-error" (option string))))
  (export "error-code" (type $code (eq $code')))
"""

# interface, function, type: of the core functions that the module imports.
_CALLS: Final = """
http [constructor]fields -> i32
http [method]fields.append i32 i32 i32 i32 i32 i32
http [method]incoming-request.path-with-query i32 i32
http [method]incoming-request.consume i32 i32
http [method]incoming-body.stream i32 i32
http [static]incoming-body.finish i32 -> i32
http [constructor]outgoing-response i32 -> i32
http [method]outgoing-response.set-status-code i32 i32 -> i32
http [method]outgoing-response.body i32 i32
http [method]outgoing-body.write i32 i32
http [static]outgoing-body.finish i32 i32 i32 i32
http [static]response-outparam.set i32 i32 i32 i32 i64 i32 i32 i32 i32
http [constructor]outgoing-request i32 -> i32
http [method]outgoing-request.set-authority i32 i32 i32 i32 -> i32
http [method]outgoing-request.set-path-with-query i32 i32 i32 i32 -> i32
http [method]outgoing-request.set-scheme i32 i32 i32 i32 i32 -> i32
http [method]future-incoming-response.subscribe i32 -> i32
http [method]future-incoming-response.get i32 i32
http [method]incoming-response.consume i32 i32
handler handle i32 i32 i32 i32
streams [method]input-stream.blocking-read i32 i64 i32
streams [method]output-stream.blocking-write-and-flush i32 i32 i32 i32
streams [method]output-stream.check-write i32 i32
streams [method]output-stream.write i32 i32 i32 i32
streams [method]output-stream.subscribe i32 -> i32
poll [method]pollable.block i32
clock subscribe-duration i64 -> i32
out get-stdout -> i32
"""
_DROPS: Final = {"input-stream": "streams", "output-stream": "streams", "pollable": "poll"}
_INTERFACES: Final = ("http", "handler", "streams", "poll", "clock", "out")


def _calls() -> list[tuple[str, str, str]]:
    found = []
    for line in _CALLS.strip().splitlines():
        left, _, result = line.partition(" -> ")
        where, name, *params = left.split()
        kind = f"(param {' '.join(params)})" if params else ""
        found.append((where, name, kind + (f" (result {result})" if result else "")))
    return found


def _symbol(name: str) -> str:
    return name.replace("[constructor]", "new-").replace("[method]", "").replace("[static]", "")


def _imports() -> str:
    lines = [f'(import "{where}" "{name}" (func ${_symbol(name)} {kind}))' for where, name, kind in _calls()]
    lines += [f'(import "{where}" "drop-{name}" (func $drop-{name} (param i32)))' for name, where in _DROPS.items()]
    return "\n".join(lines)


def _lowered() -> str:
    lines = []
    for i, (where, name, _) in enumerate(_calls()):
        memory = '(memory (core memory $m "memory")) (realloc (core func $realloc))'
        lines.append(f'(core func $c{i} (canon lower (func ${where} "{name}") {memory}))')
    lines += [f"(core func $drop-{name} (canon resource.drop ${name}))" for name in _DROPS]
    return "\n".join(lines)


def _instances() -> str:
    lines = []
    for interface in _INTERFACES:
        funcs = [f'(export "{n}" (func $c{i}))' for i, (w, n, _) in enumerate(_calls()) if w == interface]
        funcs += [f'(export "drop-{n}" (func $drop-{n}))' for n, w in _DROPS.items() if w == interface]
        lines.append(f'(with "{interface}" (instance {" ".join(funcs)}))')
    return "\n".join(lines)


def guest(version: str = "0.2.0") -> str:
    """The text of the component. Paths:

    ``/h`` a line; ``/e`` the request's body, back; ``/r`` its body on stdout, then a line; ``/t`` a trap; ``/s`` a loop
    without an end; ``/n`` no answer; ``/b`` 1 MiB; ``/p`` a line, then a trap; ``/S`` a line, then a
    loop without an end; ``/l`` a line of six with a
    Content-Length of nine; ``/w`` waits for a second; ``/W`` waits for a minute; ``/d`` a body that is not finished;
    ``/m`` asks for 4 GiB, which it cannot get; ``/o`` a line on stdout; ``/fHOST:PORT`` what is at
    ``http://HOST:PORT/h``, ``/FHOST:PORT`` the same by TLS.
    """
    return f"""(component
(import "wasi:io/poll@{version}" (instance $poll
  (export "pollable" (type $p (sub resource)))
  (export "[method]pollable.block" (func (param "self" (borrow $p))))))
(alias export $poll "pollable" (type $pollable))
(import "wasi:io/error@{version}" (instance $ioerror (export "error" (type (sub resource)))))
(alias export $ioerror "error" (type $error))
(import "wasi:io/streams@{version}" (instance $streams
  (alias outer 1 $error (type $e'))
  (export "error" (type $e (eq $e')))
  (alias outer 1 $pollable (type $p'))
  (export "pollable" (type $p (eq $p')))
  (type $se' (variant (case "last-operation-failed" (own $e)) (case "closed")))
  (export "stream-error" (type $se (eq $se')))
  (export "input-stream" (type $in (sub resource)))
  (export "output-stream" (type $out (sub resource)))
  (export "[method]input-stream.blocking-read"
    (func (param "self" (borrow $in)) (param "len" u64) (result (result (list u8) (error $se)))))
  (export "[method]output-stream.blocking-write-and-flush"
    (func (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $se)))))
  (export "[method]output-stream.check-write" (func (param "self" (borrow $out)) (result (result u64 (error $se)))))
  (export "[method]output-stream.write"
    (func (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $se)))))
  (export "[method]output-stream.subscribe" (func (param "self" (borrow $out)) (result (own $p))))))
(alias export $streams "input-stream" (type $input-stream))
(alias export $streams "output-stream" (type $output-stream))
(import "wasi:cli/stdout@{version}" (instance $out
  (alias outer 1 $output-stream (type $o'))
  (export "by-another-name" (type $o (eq $o')))
  (export "get-stdout" (func (result (own $o))))))
(import "wasi:clocks/monotonic-clock@{version}" (instance $clock
  (alias outer 1 $pollable (type $p'))
  (export "pollable" (type $p (eq $p')))
  (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
(import "wasi:http/types@{version}" (instance $http
  (alias outer 1 $input-stream (type $i'))
  (export "input-stream" (type $in (eq $i')))
  (alias outer 1 $output-stream (type $o'))
  (export "output-stream" (type $out (eq $o')))
  (alias outer 1 $pollable (type $p'))
  (export "pollable" (type $p (eq $p')))
  {_ERROR_CODE}
  (type $he' (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
  (export "header-error" (type $he (eq $he')))
  (type $scheme' (variant (case "HTTP") (case "HTTPS") (case "other" string)))
  (export "scheme" (type $scheme (eq $scheme')))
  (export "fields" (type $fields (sub resource)))
  (export "incoming-request" (type $ireq (sub resource)))
  (export "incoming-body" (type $ibody (sub resource)))
  (export "future-trailers" (type $ft (sub resource)))
  (export "outgoing-response" (type $ores (sub resource)))
  (export "outgoing-body" (type $obody (sub resource)))
  (export "response-outparam" (type $outparam (sub resource)))
  (export "outgoing-request" (type $oreq (sub resource)))
  (export "request-options" (type $options (sub resource)))
  (export "incoming-response" (type $ires (sub resource)))
  (export "future-incoming-response" (type $fires (sub resource)))
  (export "[constructor]fields" (func (result (own $fields))))
  (export "[method]fields.append" (func (param "self" (borrow $fields)) (param "name" string)
    (param "value" (list u8)) (result (result (error $he)))))
  (export "[method]incoming-request.path-with-query"
    (func (param "self" (borrow $ireq)) (result (option string))))
  (export "[method]incoming-request.consume" (func (param "self" (borrow $ireq)) (result (result (own $ibody)))))
  (export "[method]incoming-body.stream" (func (param "self" (borrow $ibody)) (result (result (own $in)))))
  (export "[static]incoming-body.finish" (func (param "this" (own $ibody)) (result (own $ft))))
  (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $ores))))
  (export "[method]outgoing-response.set-status-code"
    (func (param "self" (borrow $ores)) (param "status-code" u16) (result (result))))
  (export "[method]outgoing-response.body" (func (param "self" (borrow $ores)) (result (result (own $obody)))))
  (export "[method]outgoing-body.write" (func (param "self" (borrow $obody)) (result (result (own $out)))))
  (export "[static]outgoing-body.finish" (func (param "this" (own $obody)) (param "trailers" (option (own $fields)))
    (result (result (error $code)))))
  (export "[static]response-outparam.set" (func (param "param" (own $outparam))
    (param "response" (result (own $ores) (error $code)))))
  (export "[constructor]outgoing-request" (func (param "headers" (own $fields)) (result (own $oreq))))
  (export "[method]outgoing-request.set-authority"
    (func (param "self" (borrow $oreq)) (param "authority" (option string)) (result (result))))
  (export "[method]outgoing-request.set-path-with-query"
    (func (param "self" (borrow $oreq)) (param "path-with-query" (option string)) (result (result))))
  (export "[method]outgoing-request.set-scheme"
    (func (param "self" (borrow $oreq)) (param "scheme" (option $scheme)) (result (result))))
  (export "[method]future-incoming-response.subscribe" (func (param "self" (borrow $fires)) (result (own $p))))
  (export "[method]future-incoming-response.get" (func (param "self" (borrow $fires))
    (result (option (result (result (own $ires) (error $code)))))))
  (export "[method]incoming-response.consume" (func (param "self" (borrow $ires)) (result (result (own $ibody)))))))
(alias export $http "incoming-request" (type $incoming-request))
(alias export $http "response-outparam" (type $response-outparam))
(alias export $http "outgoing-request" (type $outgoing-request))
(alias export $http "request-options" (type $request-options))
(alias export $http "future-incoming-response" (type $future-incoming-response))
(alias export $http "error-code" (type $error-code))
(import "wasi:http/outgoing-handler@{version}" (instance $handler
  (alias outer 1 $outgoing-request (type $r'))
  (export "outgoing-request" (type $r (eq $r')))
  (alias outer 1 $request-options (type $o'))
  (export "request-options" (type $o (eq $o')))
  (alias outer 1 $future-incoming-response (type $f'))
  (export "future-incoming-response" (type $f (eq $f')))
  (alias outer 1 $error-code (type $c'))
  (export "error-code" (type $c (eq $c')))
  (export "handle" (func (param "request" (own $r)) (param "options" (option (own $o)))
    (result (result (own $f) (error $c)))))))
(core module $memory
  (memory (export "memory") 4)
  (global $heap (mut i32) (i32.const 65536))
  (func (export "reset") (global.set $heap (i32.const 65536)))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (if (i32.gt_u (global.get $heap) (i32.const 262144)) (then unreachable))
    (local.get $at)))
(core instance $m (instantiate $memory))
(alias core export $m "realloc" (core func $realloc))
{_lowered()}
(core module $main
  (import "m" "memory" (memory 1))
  (import "m" "reset" (func $reset))
  {_imports()}
  (data (i32.const 64) "Hello\\n")
  (data (i32.const 96) "content-length")
  (data (i32.const 112) "9")
  (data (i32.const 128) "/h")
  (func $result (param $at i32) (result i32)
    (if (i32.load8_u (local.get $at)) (then unreachable))
    (i32.load (i32.add (local.get $at) (i32.const 4))))
  (func $wait (param $nanoseconds i64)
    (local $pollable i32)
    (local.set $pollable (call $subscribe-duration (local.get $nanoseconds)))
    (call $pollable.block (local.get $pollable))
    (call $drop-pollable (local.get $pollable)))
  (func $copy (param $from i32) (param $to i32)
    (loop $more
      (call $reset)
      (call $input-stream.blocking-read (local.get $from) (i64.const 4096) (i32.const 32))
      (if (i32.eqz (i32.load8_u (i32.const 32))) (then
        (call $output-stream.blocking-write-and-flush (local.get $to)
          (i32.load (i32.const 36)) (i32.load (i32.const 40)) (i32.const 48))
        (br_if $more (i32.eqz (i32.load8_u (i32.const 48))))))))
  (func $fill (param $to i32) (param $left i32)
    (local $pollable i32) (local $room i32)
    (loop $more
      (call $output-stream.check-write (local.get $to) (i32.const 32))
      (if (i32.load8_u (i32.const 32)) (then return))
      (local.set $room (i32.wrap_i64 (i64.load (i32.const 40))))
      (if (i32.eqz (local.get $room)) (then
        (local.set $pollable (call $output-stream.subscribe (local.get $to)))
        (call $pollable.block (local.get $pollable))
        (call $drop-pollable (local.get $pollable))
        (br $more)))
      (if (i32.gt_u (local.get $room) (i32.const 32768)) (then (local.set $room (i32.const 32768))))
      (if (i32.gt_u (local.get $room) (local.get $left)) (then (local.set $room (local.get $left))))
      (call $output-stream.write (local.get $to) (i32.const 65536) (local.get $room) (i32.const 32))
      (if (i32.load8_u (i32.const 32)) (then return))
      (local.set $left (i32.sub (local.get $left) (local.get $room)))
      (br_if $more (local.get $left))))
  (func $fetch (param $tls i32) (param $path i32) (param $length i32) (param $to i32)
    (local $request i32) (local $future i32) (local $pollable i32) (local $body i32) (local $stream i32)
    (local.set $request (call $new-outgoing-request (call $new-fields)))
    (drop (call $outgoing-request.set-authority (local.get $request) (i32.const 1)
      (i32.add (local.get $path) (i32.const 2)) (i32.sub (local.get $length) (i32.const 2))))
    (drop (call $outgoing-request.set-path-with-query (local.get $request) (i32.const 1)
      (i32.const 128) (i32.const 2)))
    (drop (call $outgoing-request.set-scheme (local.get $request) (i32.const 1) (local.get $tls)
      (i32.const 0) (i32.const 0)))
    (call $handle (local.get $request) (i32.const 0) (i32.const 0) (i32.const 32))
    (if (i32.load8_u (i32.const 32)) (then unreachable))
    (local.set $future (i32.load (i32.const 40)))
    (local.set $pollable (call $future-incoming-response.subscribe (local.get $future)))
    (call $pollable.block (local.get $pollable))
    (call $future-incoming-response.get (local.get $future) (i32.const 32))
    (if (i32.load8_u (i32.const 48)) (then
      (call $output-stream.blocking-write-and-flush (local.get $to) (i32.const 56) (i32.const 1) (i32.const 200))
      (return)))
    (call $incoming-response.consume (i32.load (i32.const 56)) (i32.const 32))
    (local.set $body (call $result (i32.const 32)))
    (call $incoming-body.stream (local.get $body) (i32.const 32))
    (local.set $stream (call $result (i32.const 32)))
    (call $copy (local.get $stream) (local.get $to))
    (call $drop-input-stream (local.get $stream)))
  (func (export "handle") (param $request i32) (param $outparam i32)
    (local $path i32) (local $length i32) (local $what i32)
    (local $fields i32) (local $response i32) (local $body i32) (local $stream i32)
    (call $incoming-request.path-with-query (local.get $request) (i32.const 16))
    (local.set $path (i32.load (i32.const 20)))
    (local.set $length (i32.load (i32.const 24)))
    (local.set $what (i32.load8_u (i32.add (local.get $path) (i32.const 1))))
    (if (i32.eq (local.get $what) (i32.const {ord("t")})) (then unreachable))
    (if (i32.eq (local.get $what) (i32.const {ord("n")})) (then return))
    (if (i32.eq (local.get $what) (i32.const {ord("s")})) (then (loop $ever (br $ever))))
    (if (i32.eq (local.get $what) (i32.const {ord("m")})) (then
      (if (i32.ne (memory.grow (i32.const 65000)) (i32.const -1)) (then unreachable))))
    (if (i32.eq (local.get $what) (i32.const {ord("w")})) (then (call $wait (i64.const 1000000000))))
    (if (i32.eq (local.get $what) (i32.const {ord("W")})) (then (call $wait (i64.const 60000000000))))
    (if (i32.eq (local.get $what) (i32.const {ord("o")})) (then
      (call $output-stream.blocking-write-and-flush (call $get-stdout) (i32.const 64) (i32.const 6)
        (i32.const 32))))
    (if (i32.eq (local.get $what) (i32.const {ord("r")})) (then
      (call $incoming-request.consume (local.get $request) (i32.const 32))
      (call $incoming-body.stream (call $result (i32.const 32)) (i32.const 32))
      (call $copy (call $result (i32.const 32)) (call $get-stdout))))
    (local.set $fields (call $new-fields))
    (if (i32.eq (local.get $what) (i32.const {ord("l")})) (then
      (call $fields.append (local.get $fields) (i32.const 96) (i32.const 14) (i32.const 112) (i32.const 1)
        (i32.const 32))))
    (local.set $response (call $new-outgoing-response (local.get $fields)))
    (call $outgoing-response.body (local.get $response) (i32.const 32))
    (local.set $body (call $result (i32.const 32)))
    (call $response-outparam.set (local.get $outparam) (i32.const 0) (local.get $response) (i32.const 0)
      (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $outgoing-body.write (local.get $body) (i32.const 32))
    (local.set $stream (call $result (i32.const 32)))
    (if (i32.eq (local.get $what) (i32.const {ord("e")})) (then
      (call $incoming-request.consume (local.get $request) (i32.const 32))
      (call $incoming-body.stream (call $result (i32.const 32)) (i32.const 32))
      (call $copy (call $result (i32.const 32)) (local.get $stream)))
    (else (if (i32.eq (local.get $what) (i32.const {ord("b")})) (then
      (call $fill (local.get $stream) (i32.const 1048576)))
    (else (if (i32.eq (i32.or (local.get $what) (i32.const 32)) (i32.const {ord("f")})) (then
      (call $fetch (i32.eq (local.get $what) (i32.const {ord("F")})) (local.get $path) (local.get $length)
        (local.get $stream)))
    (else
      (call $output-stream.blocking-write-and-flush (local.get $stream) (i32.const 64) (i32.const 6)
        (i32.const 32))))))))
    (if (i32.eq (local.get $what) (i32.const {ord("p")})) (then unreachable))
    (if (i32.eq (local.get $what) (i32.const {ord("S")})) (then (loop $ever (br $ever))))
    (call $drop-output-stream (local.get $stream))
    (if (i32.eq (local.get $what) (i32.const {ord("d")})) (then return))
    (call $outgoing-body.finish (local.get $body) (i32.const 0) (i32.const 0) (i32.const 32))))
(core instance $i (instantiate $main
  (with "m" (instance (export "memory" (memory $m "memory")) (export "reset" (func $m "reset"))))
  {_instances()}))
(type $request (own $incoming-request))
(type $outparam (own $response-outparam))
(func $served (param "request" $request) (param "response-out" $outparam) (canon lift (core func $i "handle")))
(component $shape
  (import "incoming-request" (type $r (sub resource)))
  (import "response-outparam" (type $o (sub resource)))
  (import "handle" (func $f (param "request" (own $r)) (param "response-out" (own $o))))
  (export "incoming-request" (type $r))
  (export "response-outparam" (type $o))
  (export "handle" (func $f)))
(instance $served-by (instantiate $shape
  (with "incoming-request" (type $incoming-request))
  (with "response-outparam" (type $response-outparam))
  (with "handle" (func $served))))
(export "wasi:http/incoming-handler@{version}" (instance $served-by)))
"""
