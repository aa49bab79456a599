const { total } = require("./total");
require("http").createServer((_request, response) => response.end(`total ${total([1, 2, 3])}`)).listen(3000);
