"""Answers with the greeting that the image was built with."""
import http.server
import os
import sys

from shop import orders


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{os.environ['GREETING']}: {orders.count()} orders".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
