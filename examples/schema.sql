CREATE TABLE orders (id serial PRIMARY KEY, total int NOT NULL);
